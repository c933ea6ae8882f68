"""The names of filesystems, snapshots and property scopes: what they may be, how they are read, why one is refused.

    filesystem   [NAMESPACE/]NAME       ws, team/ws
    snapshot     FILESYSTEM@SNAPSHOT    ws@before
    bookmark     FILESYSTEM#BOOKMARK    ws#before
    snapshots    WHERE@SNAPSHOT[%SNAPSHOT],...   several of one: ws@a,c%d; from, to, or both ends may be left out
    scope        /  or  NAMESPACE/      where properties are set that filesystems inherit: the store, a namespace

A component (namespace, name, snapshot, bookmark) begins with a letter or a digit and goes on with letters, digits and
`_-.:+`, in any script, in Unicode's composed form (NFC), so that two names that look the same to a keyboard are the
same bytes.  Nothing that a shell, a path or a table of columns treats specially can occur: no blank, no control
character, no leading dash or dot, hence no `..`.  A whole filesystem name, and a snapshot's own, are at most 255 bytes
of UTF-8: a snapshot's is also the name of a directory.

Everything that takes a name from outside parses it here, once, and passes the parsed form on; `str` gives the text
back, and `parse(str(x)) == x`.  An error quotes the name in printable form, however hostile it is.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Final

from tzfs.errors import InvalidArgument, NameTooLong
from tzfs.limits import FILESYSTEM_NAME_BYTES_MAX, SNAPSHOT_NAME_BYTES_MAX

PUNCTUATION: Final = "_-.:+"
_SHOWN_MAX: Final = 60  # characters of a refused name that an error repeats
_RULE: Final = f"a name begins with a letter or digit and goes on with letters, digits and any of {PUNCTUATION}"


@dataclass(frozen=True, slots=True, order=True)
class FilesystemName:
    """A valid filesystem name.  `namespace` is empty for a name without one."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    @property
    def scope(self) -> Scope | None:
        """The namespace as a scope of properties; None for a name without one."""
        return Scope(self.namespace) if self.namespace else None


@dataclass(frozen=True, slots=True, order=True)
class SnapshotName:
    """A valid name of a snapshot of a filesystem."""

    filesystem: FilesystemName
    snapshot: str

    def __str__(self) -> str:
        return f"{self.filesystem}@{self.snapshot}"


@dataclass(frozen=True, slots=True, order=True)
class BookmarkName:
    """A valid name of a bookmark in a filesystem."""

    filesystem: FilesystemName
    bookmark: str

    def __str__(self) -> str:
        return f"{self.filesystem}#{self.bookmark}"


@dataclass(frozen=True, slots=True, order=True)
class Scope:
    """Where inherited properties are set: a namespace, or the whole store where `namespace` is empty."""

    namespace: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/"


STORE_SCOPE: Final = Scope()


@dataclass(frozen=True, slots=True)
class SnapshotRange:
    """Snapshots from `first` to `last`, both inclusive; None: from the oldest, to the newest."""

    first: str | None
    last: str | None


def parse_filesystem(text: str) -> FilesystemName:
    """`[NAMESPACE/]NAME`.  `InvalidArgument` or `NameTooLong` says what is wrong with it."""
    what = "filesystem name"
    _check_whole(text, what)
    if "@" in text:
        raise _refused(text, what, "'@' begins a snapshot's name", "give the filesystem alone")
    _check_no_bookmark(text, what)
    if len(text.encode()) > FILESYSTEM_NAME_BYTES_MAX:
        raise _too_long(text, what, FILESYSTEM_NAME_BYTES_MAX)
    if text.startswith("/") and len(text) > 1:
        raise _refused(text, what, "it begins with '/'", "names are not paths: NAMESPACE/NAME or NAME")
    if text.endswith("/"):
        raise _refused(text, what, "it ends with '/'", "that spelling means where properties are inherited from")
    namespace, slash, name = text.rpartition("/")
    if "/" in namespace:
        raise _refused(text, what, "it has more than one '/'", "namespaces do not nest: NAMESPACE/NAME or NAME")
    if slash:
        _check_component(namespace, text, what)
    _check_component(name, text, what)
    return FilesystemName(namespace, name)


def parse_snapshot(text: str) -> SnapshotName:
    """`FILESYSTEM@SNAPSHOT`.  `InvalidArgument` or `NameTooLong` says what is wrong with it."""
    what = "snapshot name"
    _check_whole(text, what)
    filesystem, at, snapshot = text.partition("@")
    if not at:
        raise _refused(text, what, "it has no '@'", "give FILESYSTEM@SNAPSHOT")
    if "@" in snapshot:
        raise _refused(text, what, "it has more than one '@'", "give FILESYSTEM@SNAPSHOT")
    if not filesystem:
        raise _refused(text, what, "no filesystem stands before '@'", "give FILESYSTEM@SNAPSHOT")
    return SnapshotName(parse_filesystem(filesystem), check_snapshot_component(snapshot))


def parse_bookmark(text: str) -> BookmarkName:
    """`FILESYSTEM#BOOKMARK`.  `InvalidArgument` or `NameTooLong` says what is wrong with it."""
    what = "bookmark name"
    _check_whole(text, what)
    filesystem, mark, bookmark = text.partition("#")
    if not mark or not filesystem:
        raise _refused(text, what, "no filesystem and '#' stand before it", "give FILESYSTEM#BOOKMARK")
    if "#" in bookmark:
        raise _refused(text, what, "it has more than one '#'", "give FILESYSTEM#BOOKMARK")
    return BookmarkName(parse_filesystem(filesystem), check_snapshot_component(bookmark))


def parse_snapshots(text: str) -> tuple[FilesystemName | Scope, tuple[SnapshotRange, ...]]:
    """`WHERE@RANGE,RANGE...`: WHERE a filesystem or a scope, RANGE a snapshot, or `FROM%TO` where either may be empty.

    `InvalidArgument` or `NameTooLong` says what is wrong with it.
    """
    what = "snapshot name"
    _check_whole(text, what)
    where, at, rest = text.partition("@")
    if not at:
        raise _refused(text, what, "it has no '@'", "give FILESYSTEM@SNAPSHOT")
    if "@" in rest:
        raise _refused(text, what, "it has more than one '@'", "give FILESYSTEM@SNAPSHOT")
    if not where:
        raise _refused(text, what, "no filesystem stands before '@'", "give FILESYSTEM@SNAPSHOT")
    ranges = []
    for part in rest.split(","):
        first, percent, last = part.partition("%")
        if not percent:
            last = first = check_snapshot_component(part)
        ends = [None if percent and not end else check_snapshot_component(end) for end in (first, last)]
        ranges.append(SnapshotRange(*ends))
    return parse_property_target(where), tuple(ranges)


def check_snapshot_component(snapshot: str) -> str:
    """The part after `@`, or a bookmark's after `#`, given back if it is valid."""
    what = "snapshot name"
    _check_whole(snapshot, what)
    _check_no_bookmark(snapshot, what)
    if len(snapshot.encode()) > SNAPSHOT_NAME_BYTES_MAX:
        raise _too_long(snapshot, what, SNAPSHOT_NAME_BYTES_MAX)
    _check_component(snapshot, snapshot, what)
    return snapshot


def parse(text: str) -> FilesystemName | SnapshotName:
    """A snapshot's name where there is an `@`, else a filesystem's."""
    return parse_snapshot(text) if "@" in text else parse_filesystem(text)


def parse_scope(text: str) -> Scope:
    """`/` or `NAMESPACE/`."""
    what = "scope"
    _check_whole(text, what)
    if not text.endswith("/"):
        raise _refused(text, what, "it does not end with '/'", "give / for the store or NAMESPACE/")
    namespace = text[:-1]
    if not namespace:
        return STORE_SCOPE
    _check_no_bookmark(namespace, what)
    if len(text.encode()) > FILESYSTEM_NAME_BYTES_MAX:
        raise _too_long(text, what, FILESYSTEM_NAME_BYTES_MAX)
    _check_component(namespace, text, what)
    return Scope(namespace)


def parse_property_target(text: str) -> FilesystemName | Scope:
    """What properties can be set on here: a scope where the text ends with `/`, else a filesystem."""
    return parse_scope(text) if text.endswith("/") else parse_filesystem(text)


def show(text: str) -> str:
    """`text` in quotes, as printable ASCII where it is not printable as it is, and not at any length."""
    cut = text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "..."
    return repr(cut)  # repr escapes whatever str.isprintable refuses, lone surrogates included


def _check_whole(text: str, what: str) -> None:
    """What must hold before anything else may look at the text."""
    if not text:
        raise InvalidArgument(f"{what} is empty", hint=_RULE)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _refused(text, what, "it is not valid UTF-8", _RULE) from None


def _check_no_bookmark(text: str, what: str) -> None:
    if "#" in text:
        raise _refused(text, what, "'#' is kept for bookmarks", _RULE)


def _check_component(component: str, text: str, what: str) -> None:
    if not component:
        raise _refused(text, what, "a part of it is empty", _RULE)
    if component in (".", ".."):
        raise _refused(text, what, f"{component!r} is a path, not a name", _RULE)
    first = component[0]
    if unicodedata.category(first)[0] not in "LN":
        raise _refused(text, what, f"it begins with {_character(first)}", _RULE)
    for character in component:
        # Marks are what many scripts write vowels with; everything invisible is in C or Z.
        if unicodedata.category(character)[0] not in "LNM" and character not in PUNCTUATION:
            raise _refused(text, what, f"{_character(character)} is not allowed", _RULE)
    if not unicodedata.is_normalized("NFC", component):
        raise _refused(text, what, "it is not in Unicode's composed form", "normalize it to NFC")


def _character(character: str) -> str:
    if character == " ":
        return "a blank"
    if unicodedata.category(character) == "Cc":
        return f"the control character {character!r}"
    return repr(character)


def _refused(text: str, what: str, why: str, hint: str) -> InvalidArgument:
    return InvalidArgument(f"{what} {show(text)}: {why}", hint=hint)


def _too_long(text: str, what: str, bytes_max: int) -> NameTooLong:
    return NameTooLong(f"{what} {show(text)}: {len(text.encode())} bytes, at most {bytes_max} are allowed")
