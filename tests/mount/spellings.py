"""The names that unions had before `|`, handed on to tests: a handler may spell its shape with them."""

from __future__ import annotations

from typing import Optional, Union

__all__ = ["Optional", "Union"]
