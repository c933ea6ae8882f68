"""The command line, run in this process: the same `tzfs.cli.run` that the program calls, with its streams captured."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from tzfs.cli import run


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The error without its hint."""
        return self.err.partition("\n")[0]


class CommandLine:
    """`tzfs --store STORE ...`; calling it answers what a command printed and its exit code."""

    def __init__(self, store: Path) -> None:
        self.store = store

    def __call__(self, *arguments: str | Path) -> Answer:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        with redirect_stdout(out), redirect_stderr(err):
            code = run(["--store", str(self.store), *map(str, arguments)])
        return Answer(code, _written(out), _written(err))

    def ok(self, *arguments: str | Path) -> str:
        """What a command printed that must succeed, without a word beside it."""
        answer = self(*arguments)
        assert (answer.code, answer.err) == (0, ""), answer
        return answer.out

    def json(self, *arguments: str | Path) -> object:
        """The document that a command printed."""
        return json.loads(self.ok(*arguments))

    def refused(self, *arguments: str | Path, code: int) -> str:
        """What a command said that must fail with `code`: one line, and at most one more of a hint."""
        answer = self(*arguments)
        assert (answer.code, answer.out) == (code, ""), answer
        check_words(answer.err)
        return answer.err


def _written(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def check_words(err: str) -> None:
    """An error is a line of `tzfs: `, lower-case, and perhaps one of `hint: `; nothing that a terminal would obey."""
    lines = err.splitlines()
    assert 1 <= len(lines) <= 2, err
    assert lines[0].startswith("tzfs: "), err
    assert not lines[0].removeprefix("tzfs: ")[:1].isupper(), err
    assert all(line.startswith("hint: ") for line in lines[1:]), err
    assert "internal error" not in err, err
    assert "Traceback" not in err, err
    assert err.replace("\n", "").isprintable(), err
