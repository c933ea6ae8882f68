"""The life of a filesystem, and what each command may do in each state of it.

    CREATING -> ACTIVE <-> ARCHIVED        CREATING: recorded, its folder not complete; undone if interrupted
                   \\         /             ACTIVE: may be written
                    DELETING -> gone       ARCHIVED: read-only until activated;  DELETING: finished if interrupted

`RULES` is the whole table: one row a command, and `check` its only reader.  A filesystem that is not there is in no
state (None).  A filesystem may also be *held*: somebody has its lease, which usually means that it is mounted.

A rule says for each state what comes of the command there, and whether a holder is in its way.  Commands that are not
refused while the filesystem is held either do not touch what the holder owns (`rename`: the lease is in the folder,
whose name stays) or go through the holder's control socket (`snapshot`, `gc`, `sync`, `run`, a second `mount` of a
snapshot).  Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tzfs.errors import Busy, Exists, NotFound, WrongState


class State(StrEnum):
    """A filesystem's lifecycle state, as recorded in the catalog."""

    CREATING = "creating"
    ACTIVE = "active"
    ARCHIVED = "archived"
    DELETING = "deleting"


class Command(StrEnum):
    """Everything that can be asked about one filesystem, by the name it has in messages."""

    CREATE = "create"
    MOUNT = "mount"
    MOUNT_READONLY = "mount read-only"
    MOUNT_SNAPSHOT = "mount a snapshot of"
    UMOUNT = "unmount"
    OPEN = "open for writing"
    OPEN_READONLY = "open for reading"
    OPEN_SNAPSHOT = "open a snapshot of"
    RUN = "run in"
    SNAPSHOT = "snapshot"
    CLONE = "clone a snapshot of"
    FLATTEN = "flatten"
    APPLY = "apply"
    APPLY_ONTO = "apply a clone to"
    HOLD = "hold a snapshot of"
    RELEASE = "release a snapshot of"
    BOOKMARK = "bookmark a snapshot of"
    ROLLBACK = "roll back"
    RESTORE = "restore into"
    SEND = "send a snapshot of"
    RECEIVE = "receive into"
    DESTROY_SNAPSHOT = "destroy a snapshot of"
    SYNC = "sync"
    GC = "collect garbage in"
    CHECK = "check"
    RENAME = "rename"
    ARCHIVE = "archive"
    ACTIVATE = "activate"
    DESTROY = "destroy"
    SET = "set a property of"
    INHERIT = "clear a property of"
    GET = "get properties of"
    LIST = "list"
    STATUS = "get the status of"


@dataclass(frozen=True, slots=True)
class Rule:
    """In which states a command is allowed (None: where there is no such filesystem), and how a holder matters."""

    states: frozenset[State | None]
    free: bool = False  # only while nobody holds it
    held: bool = False  # only while somebody holds it


_A, _R, _D = State.ACTIVE, State.ARCHIVED, State.DELETING
_RECORDED: Final = frozenset[State | None](State)
_STEADY: Final = frozenset[State | None]((_A, _R))
_WRITABLE: Final = frozenset[State | None]((_A,))

RULES: Final[Mapping[Command, Rule]] = {
    Command.CREATE: Rule(frozenset((None,))),
    Command.MOUNT: Rule(_WRITABLE, free=True),
    Command.MOUNT_READONLY: Rule(_STEADY, free=True),
    Command.MOUNT_SNAPSHOT: Rule(_STEADY),
    Command.UMOUNT: Rule(_STEADY, held=True),
    Command.OPEN: Rule(_WRITABLE, free=True),
    Command.OPEN_READONLY: Rule(_STEADY),
    Command.OPEN_SNAPSHOT: Rule(_STEADY),
    Command.RUN: Rule(_WRITABLE),
    Command.SNAPSHOT: Rule(_WRITABLE),
    Command.CLONE: Rule(_STEADY),
    Command.FLATTEN: Rule(_STEADY),  # copies what is inherited, changes no contents
    Command.APPLY: Rule(_STEADY, free=True),  # the clone, which is only read
    Command.APPLY_ONTO: Rule(_WRITABLE),
    Command.HOLD: Rule(_STEADY),  # what is archived keeps its snapshots, and may be told for how long
    Command.RELEASE: Rule(_STEADY),
    Command.BOOKMARK: Rule(_STEADY),
    Command.ROLLBACK: Rule(_WRITABLE),
    Command.RESTORE: Rule(_WRITABLE),
    Command.SEND: Rule(_STEADY),
    Command.RECEIVE: Rule(_WRITABLE, free=True),
    Command.DESTROY_SNAPSHOT: Rule(_WRITABLE),
    Command.SYNC: Rule(_STEADY),
    Command.GC: Rule(_STEADY),  # gives space back, changes no contents
    Command.CHECK: Rule(_STEADY),
    Command.RENAME: Rule(_STEADY),
    Command.ARCHIVE: Rule(_WRITABLE, free=True),
    Command.ACTIVATE: Rule(frozenset((_R,)), free=True),
    Command.DESTROY: Rule(_STEADY | {_D}, free=True),  # in DELETING: goes on where it was interrupted
    Command.SET: Rule(_STEADY),  # properties are the catalog's: an archived filesystem can be labelled
    Command.INHERIT: Rule(_STEADY),
    Command.GET: Rule(_RECORDED),
    Command.LIST: Rule(_RECORDED),
    Command.STATUS: Rule(_RECORDED),
}

_UNDER_WAY: Final = {State.CREATING: "being created", State.DELETING: "being destroyed"}


def check(command: Command, name: object, state: State | None, holder: str | None = None) -> None:
    """Returns if `command` may be done to `name` in `state`, held by `holder` (None: by nobody).

    Otherwise raises `NotFound` or `Exists` where it is about there being such a filesystem, `WrongState` naming the
    state, or `Busy` naming the holder.  The state is looked at before the holder.
    """
    rule = RULES[command]
    if state not in rule.states:
        raise _refused(command, name, state)
    if rule.free and holder is not None:
        raise Busy(
            f"cannot {command} {name}: it is in use by {holder}",
            holders=(holder,),
            hint=f"unmount it first: tzfs umount {name}",
        )
    if rule.held and holder is None:
        raise WrongState(f"cannot {command} {name}: it is not mounted")


def allowed(command: Command, state: State | None, holder: str | None = None) -> bool:
    """Whether `check` would return."""
    rule = RULES[command]
    return state in rule.states and not (rule.free and holder is not None) and not (rule.held and holder is None)


def _refused(command: Command, name: object, state: State | None) -> NotFound | Exists | WrongState:
    if state is None:
        return NotFound(f"cannot {command} {name}: there is no such filesystem", hint="tzfs list shows what there is")
    if command is Command.CREATE and state not in _UNDER_WAY:
        return Exists(f"cannot create {name}: there is one already, and it is {state.name}")
    shown = f"{state.name} ({_UNDER_WAY[state]})" if state in _UNDER_WAY else state.name
    return WrongState(f"cannot {command} {name}: it is {shown}", hint=_way_out(command, name, state))


def _way_out(command: Command, name: object, state: State) -> str | None:
    if state in _UNDER_WAY:
        return "try again when that is done"
    if state is State.ARCHIVED and Command.MOUNT_READONLY in RULES and command is Command.MOUNT:
        return f"mount it read-only (-o ro), or make it writable: tzfs activate {name}"
    if state is State.ARCHIVED and command is not Command.ARCHIVE:
        return f"make it writable: tzfs activate {name}"
    return None
