"""Every command in every state, held and not: what is allowed, and how a refusal says what is in the way."""

from __future__ import annotations

import pytest

from tzfs.errors import Busy, Exists, NotFound, TzfsError, WrongState
from tzfs.lifecycle import RULES, Command, State, allowed, check

HOLDER = "pid 4711, mounted at /mnt/ws"
STATES = (None, State.CREATING, State.ACTIVE, State.ARCHIVED, State.DELETING)

# One letter a case: + allowed, N NotFound, X Exists, W WrongState, B Busy.
# Columns:      absent, CREATING, ACTIVE, ARCHIVED, DELETING;  free, then held.
TABLE = {
    Command.CREATE: ("+WXXW", "+WXXW"),
    Command.MOUNT: ("NW+WW", "NWBWW"),
    Command.MOUNT_READONLY: ("NW++W", "NWBBW"),
    Command.MOUNT_SNAPSHOT: ("NW++W", "NW++W"),
    Command.UMOUNT: ("NWWWW", "NW++W"),
    Command.OPEN: ("NW+WW", "NWBWW"),
    Command.OPEN_READONLY: ("NW++W", "NW++W"),
    Command.OPEN_SNAPSHOT: ("NW++W", "NW++W"),
    Command.RUN: ("NW+WW", "NW+WW"),
    Command.SNAPSHOT: ("NW+WW", "NW+WW"),
    Command.CLONE: ("NW++W", "NW++W"),
    Command.FLATTEN: ("NW++W", "NW++W"),
    Command.APPLY: ("NW++W", "NWBBW"),
    Command.APPLY_ONTO: ("NW+WW", "NW+WW"),
    Command.HOLD: ("NW++W", "NW++W"),
    Command.RELEASE: ("NW++W", "NW++W"),
    Command.BOOKMARK: ("NW++W", "NW++W"),
    Command.ROLLBACK: ("NW+WW", "NW+WW"),
    Command.RESTORE: ("NW+WW", "NW+WW"),
    Command.SEND: ("NW++W", "NW++W"),
    Command.RECEIVE: ("NW+WW", "NWBWW"),
    Command.DESTROY_SNAPSHOT: ("NW+WW", "NW+WW"),
    Command.SYNC: ("NW++W", "NW++W"),
    Command.GC: ("NW++W", "NW++W"),
    Command.CHECK: ("NW++W", "NW++W"),
    Command.RENAME: ("NW++W", "NW++W"),
    Command.ARCHIVE: ("NW+WW", "NWBWW"),
    Command.ACTIVATE: ("NWW+W", "NWWBW"),
    Command.DESTROY: ("NW+++", "NWBBB"),
    Command.SET: ("NW++W", "NW++W"),
    Command.INHERIT: ("NW++W", "NW++W"),
    Command.GET: ("N++++", "N++++"),
    Command.LIST: ("N++++", "N++++"),
    Command.STATUS: ("N++++", "N++++"),
}
ERRORS: dict[str, type[TzfsError]] = {"N": NotFound, "X": Exists, "W": WrongState, "B": Busy}
CASES = [
    (command, state, holder, letter)
    for command, columns in TABLE.items()
    for holder, letters in zip((None, HOLDER), columns, strict=True)
    for state, letter in zip(STATES, letters, strict=True)
]


def test_the_table_has_every_command() -> None:
    assert set(TABLE) == set(RULES) == set(Command)
    assert len(CASES) == len(Command) * (len(State) + 1) * 2


@pytest.mark.parametrize(
    ("command", "state", "holder", "letter"),
    CASES,
    ids=[f"{c.name}-{s.name if s else 'absent'}-{'held' if h else 'free'}" for c, s, h, _ in CASES],
)
def test_a_command_is_allowed_or_refused_as_the_table_says(
    command: Command, state: State | None, holder: str | None, letter: str
) -> None:
    assert allowed(command, state, holder) == (letter == "+")
    if letter == "+":
        check(command, "ws", state, holder)
        return
    with pytest.raises(ERRORS[letter]) as caught:
        check(command, "ws", state, holder)
    assert type(caught.value) is ERRORS[letter]
    message = str(caught.value)
    assert "ws" in message
    assert command.value in message
    if isinstance(caught.value, Busy):
        assert HOLDER in message
        assert caught.value.holders == (HOLDER,)
    elif state is not None and "not mounted" not in message:
        assert state.name in message


def test_what_is_archived_says_how_to_write_it_again() -> None:
    with pytest.raises(WrongState) as caught:
        check(Command.MOUNT, "ws", State.ARCHIVED)
    assert caught.value.hint is not None
    assert "tzfs activate ws" in caught.value.hint
