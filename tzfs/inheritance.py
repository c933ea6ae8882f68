"""Where a filesystem has the value of a property from.

A value set on the filesystem itself is `local`.  Without one, the value is inherited from the filesystem's namespace,
spelled `NAMESPACE/`, then from the store, spelled `/`; a native property then has its default, a user property none.
`resolve` says for each property the value and its SOURCE:

    local        inherited from team/        inherited from /        default        - (computed)

Values are exact, as `tzfs.properties` spells them.  Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tzfs.properties import NATIVE, Property, check_name, human, is_user, native_of

LOCAL: Final = "local"
DEFAULT: Final = "default"
COMPUTED: Final = "-"
ABSENT: Final = "-"  # shown where there is no value

Layer = tuple[str, Mapping[str, str]]  # a SOURCE, and the exact values set there


@dataclass(frozen=True, slots=True)
class Value:
    """A property as one filesystem has it: the exact value (None: no value now) and its SOURCE."""

    name: str
    exact: str | None
    source: str

    @property
    def human(self) -> str:
        """The value as people read it, `-` where there is none."""
        if self.exact is None:
            return ABSENT
        native = native_of(self.name)
        return self.exact if native is None else human(native, self.exact)

    @property
    def parsable(self) -> str:
        """The exact value, `-` where there is none."""
        return ABSENT if self.exact is None else self.exact


def resolve(layers: Sequence[Layer], facts: Mapping[str, str], *, snapshot: bool = False) -> dict[str, Value]:
    """Every property, native ones first, then the user's by name.

    `layers` are the places values are set in, nearest first.  `facts` are computed properties' exact values; one that
    is not among them has no value now.
    """
    found = {p.name: _native(p, layers, facts) for p in NATIVE.values() if p.snapshots or not snapshot}
    for name in sorted({name for _, values in layers for name in values if is_user(name)}):
        value = _set_in(name, layers)
        assert value is not None
        found[name] = value
    return found


def lookup(name: str, layers: Sequence[Layer], facts: Mapping[str, str]) -> Value:
    """One property as `resolve` gives it; a user property that is set nowhere has no value."""
    native = check_name(name)
    if native is not None:
        return _native(native, layers, facts)
    return _set_in(name, layers) or Value(name, None, COMPUTED)


def _native(native: Property, layers: Sequence[Layer], facts: Mapping[str, str]) -> Value:
    if not native.settable:
        return Value(native.name, facts.get(native.name), COMPUTED)
    if native.own:
        layers = [(source, values) for source, values in layers if source == LOCAL]
    return _set_in(native.name, layers) or Value(native.name, native.default, DEFAULT)


def _set_in(name: str, layers: Iterable[Layer]) -> Value | None:
    for source, values in layers:
        if name in values:
            return Value(name, values[name], source)
    return None


def inherited_from(scope: object) -> str:
    """The SOURCE of a value set on `scope`."""
    return f"inherited from {scope}"
