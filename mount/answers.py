"""What C answers the kernel without Python, and the counts it keeps: the Python side of native/src/answers.h.

Two things live there.  The *counts* are exact and always kept: how often the kernel has been told of each node (FUSE's
look-up counts, 4 bytes a node), and which nodes are open for writing.  The *cache* of attributes and names is an
accelerator before the operations class and never a second truth: the operations class tells it of each change in the
same step, and it may forget anything at any time.  `stop` switches it off for good, where the engine has failed: from
then on each request reaches the operations class, which says so.

Small writes that replace all that a file has, and unlinks, are *posted*: answered, and done by the operations class
before anything else, many at once, while the processor has its code at hand.  It says beforehand for how many bytes
nothing can fail, and whether unlinks can be done without a commit.

The cache is in the path of requests only where the pump reads them (`Pump.answer_with`); everywhere else it is told and
never asked.  Nodes without a name that the kernel forgets there are handed to `forgotten` later, in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol, cast

from tzfs.format.records import Inode
from tzfs.native._native import ffi as _ffi
from tzfs.native._native import lib as _native_lib

KINDS: Final = (  # by index of `kinds`
    "lookup", "getattr", "open", "release", "forget", "forget", "access", "write", "unlink",
)  # fmt: skip
POSTED_MAX: Final = cast(int, _native_lib.TZFS_ANSWERS_POSTED_MAX)  # changes that are answered and not done yet
FORGOTTEN_BATCH: Final = 64  # buried at once: until then an inode without a name lives a little longer


class _Kind(Protocol):
    count: int
    total_ns: int
    slowest_ns: int


class _Posted(Protocol):
    node: int
    now_ns: int
    bytes: int
    payload: object
    removes: int


class State(Protocol):
    """`struct tzfs_answers` (native/src/answers.h)."""

    enabled: int
    writable: int
    unchecked: int
    node_count: int
    live_max: int
    valid_s: int
    writing: int
    known: int
    name_count: int
    evictions: int
    forgotten: int
    room: int
    posted: int
    removes: int
    kinds: list[_Kind]


class _Library(Protocol):
    def tzfs_answers_new(self) -> State: ...
    def tzfs_answers_free(self, a: State, /) -> None: ...
    def tzfs_answers_told(self, a: State, node: int, /) -> None: ...
    def tzfs_answers_forget(self, a: State, node: int, count: int, /) -> int: ...
    def tzfs_answers_knows(self, a: State, node: int, /) -> int: ...
    def tzfs_answers_tell(self, a: State, node: int, /) -> None: ...
    def tzfs_answers_take(self, a: State, nodes: list[int], room: int, /) -> int: ...
    def tzfs_answers_opened(self, a: State, node: int, /) -> None: ...
    def tzfs_answers_closed(self, a: State, node: int, /) -> None: ...
    def tzfs_answers_writers(self, a: State, nodes: object, room: int, /) -> int: ...
    def tzfs_answers_put(
        self,
        a: State,
        node: int,
        mode: int,
        links: int,
        uid: int,
        gid: int,
        device: int,
        size: int,
        atime_ns: int,
        mtime_ns: int,
        ctime_ns: int,
        /,
    ) -> None: ...
    def tzfs_answers_wrote(self, a: State, node: int, size: int, now_ns: int, /) -> None: ...
    def tzfs_answers_drop(self, a: State, node: int, /) -> None: ...
    def tzfs_answers_name(self, a: State, directory: int, name: bytes, length: int, node: int, /) -> None: ...
    def tzfs_answers_unname(self, a: State, directory: int, name: bytes, length: int, /) -> None: ...
    def tzfs_answers_removed(self, a: State, directory: int, name: bytes, length: int, node: int, /) -> None: ...
    def tzfs_answers_complete(self, a: State, directory: int, /) -> None: ...
    def tzfs_answers_clear(self, a: State, /) -> None: ...
    def tzfs_answers_posted(self, a: State, /) -> Sequence[_Posted]: ...
    def tzfs_answers_created(self, a: State, fd: int, unique: int, handle: int, /) -> int: ...
    def tzfs_answers_try(self, a: State, fd: int, request: bytes, length: int, /) -> int: ...


_lib: Final = cast(_Library, _native_lib)
_put: Final = _lib.tzfs_answers_put
_name: Final = _lib.tzfs_answers_name
_drop: Final = _lib.tzfs_answers_drop
_knows: Final = _lib.tzfs_answers_knows
_removed: Final = _lib.tzfs_answers_removed
_told: Final = _lib.tzfs_answers_told


class Answers:
    """The counts and the cache of one mount.  Not for other threads than the mount's."""

    def __init__(self, *, live_max: int, writing: int, valid_s: int, writable: bool) -> None:
        """Node ids up to `live_max` are in the tree that is written; `writing` is the bit that marks their handles.

        Answers hold for `valid_s`.  Nothing is cached before `start`.
        """
        state = _lib.tzfs_answers_new()
        if state == _ffi.NULL:
            raise MemoryError("no memory for the look-up counts")
        self.state = cast(State, _ffi.gc(state, _native_lib.tzfs_answers_free))
        self.state.live_max, self.state.writing, self.state.valid_s = live_max, writing, valid_s
        self.state.writable = writable
        self.forgotten: Callable[[list[int]], None] = lambda nodes: None  # no name, and not known
        self._taken = cast("list[int]", _ffi.new("uint64_t[]", FORGOTTEN_BATCH))

    def start(self, *, unchecked: bool) -> None:
        """Caches from now on.  `unchecked`: the kernel leaves permission checks to us, and the mount is root's."""
        self.state.unchecked = unchecked
        self.state.enabled = 1

    def stop(self) -> None:
        """Answers nothing more."""
        self.state.enabled = 0

    # -- counts --------------------------------------------------------------------------------------------------------

    def told(self, node: int) -> None:
        """The kernel has been told of the node once more."""
        _told(self.state, node)

    def forget(self, node: int, count: int) -> bool:
        """The kernel has forgotten `count` of them; True if it does not know the node any more."""
        return bool(_lib.tzfs_answers_forget(self.state, node, count))

    def knows(self, node: int) -> bool:
        """Whether the kernel refers to the node."""
        return bool(_lib.tzfs_answers_knows(self.state, node))

    def __len__(self) -> int:
        """How many nodes the kernel knows."""
        return self.state.known

    def bury(self) -> None:
        """Hands what C has seen forgotten, and may have no name, to `forgotten`.

        Not what the kernel has been told of again since: it still had a name then, and is told of when it goes.
        """
        while count := _lib.tzfs_answers_take(self.state, self._taken, FORGOTTEN_BATCH):
            state = self.state
            self.forgotten([node for node in _ffi.unpack(self._taken, count) if not _knows(state, node)])

    def opened(self, node: int) -> None:
        """A handle that may write the node has been given out."""
        _lib.tzfs_answers_opened(self.state, node)

    def closed(self, node: int) -> None:
        """It has come back."""
        _lib.tzfs_answers_closed(self.state, node)

    def writers(self) -> list[int]:
        """The nodes that some handle may write."""
        count = _lib.tzfs_answers_writers(self.state, _ffi.NULL, 0)
        nodes = _ffi.new("uint64_t[]", max(count, 1))
        _lib.tzfs_answers_writers(self.state, nodes, count)
        return list(_ffi.unpack(nodes, count))

    # -- the cache -----------------------------------------------------------------------------------------------------

    def put(self, inode: Inode, tree: int = 0) -> None:
        """The inode's attributes as they stand."""
        _put(
            self.state,
            inode.ino | tree,
            inode.mode,
            inode.nlink,
            inode.uid,
            inode.gid,
            inode.rdev,
            inode.size,
            inode.atime_ns,
            inode.mtime_ns,
            inode.ctime_ns,
        )

    def wrote(self, node: int, size: int, now_ns: int) -> None:
        """The file has been written, and now has `size` bytes."""
        _lib.tzfs_answers_wrote(self.state, node, size, now_ns)

    def drop(self, node: int) -> None:
        """The node's attributes are not what they were."""
        _drop(self.state, node)

    def name(self, directory: int, name: bytes, node: int) -> None:
        """The entry names `node`."""
        _name(self.state, directory, name, len(name), node)

    def entry(self, directory: int, name: bytes, inode: Inode, tree: int = 0) -> None:
        """The kernel is told of the inode, as it stands, as what the entry names."""
        node = inode.ino | tree
        _told(self.state, node)
        self.put(inode, tree)
        _name(self.state, directory, name, len(name), node)

    def unname(self, directory: int, name: bytes) -> None:
        """There is no such entry any more, and the directory has changed."""
        _lib.tzfs_answers_unname(self.state, directory, name, len(name))
        _drop(self.state, directory)

    def unlinked(self, node: int) -> None:
        """A name of the node has gone, the last perhaps: `forgotten` is told when the kernel forgets it."""
        _drop(self.state, node)
        _lib.tzfs_answers_tell(self.state, node)

    def removed(self, directory: int, name: bytes, node: int) -> None:
        """`unname`, and `unlinked` of what the entry named."""
        _removed(self.state, directory, name, len(name), node)

    def complete(self, directory: int) -> None:
        """Every entry of the directory has been told, and none dropped since: see `evictions`."""
        _lib.tzfs_answers_complete(self.state, directory)

    @property
    def evictions(self) -> int:
        """Grows with each name that is dropped for want of room."""
        return self.state.evictions

    def clear(self) -> None:
        """Drops all attributes and names."""
        _lib.tzfs_answers_clear(self.state)

    def posted(self) -> Iterator[tuple[int, bytes, int, bool]]:
        """The changes that have been answered and are to be done, in order, each once: (node, all that it has from now
        on, when, False), or (directory, name of the entry that is removed, when, True)."""
        posted = _lib.tzfs_answers_posted(self.state)
        count, self.state.posted = self.state.posted, 0
        for p in posted[0:count]:
            yield p.node, _ffi.unpack(p.payload, p.bytes), p.now_ns, bool(p.removes)

    def try_answer(self, fd: int, request: bytes) -> bool:
        """Whether the request was answered, on `fd`: what the pump does, for tests."""
        return bool(_lib.tzfs_answers_try(self.state, fd, request, len(request)))

    def created(self, fd: int, unique: int, handle: int) -> bool:
        """Whether the kernel took the answer of a CREATE, on `fd`: what the pump does, for tests."""
        return bool(_lib.tzfs_answers_created(self.state, fd, unique, handle))

    def statistics(self) -> dict[str, tuple[int, int, int]]:
        """By kind of request: how many C answered, and how long that took in all and at most, in ns.

        What is posted is not timed here: whoever does it knows what it takes.
        """
        out: dict[str, tuple[int, int, int]] = {}
        for kind, s in zip(KINDS, self.state.kinds, strict=True):
            count, total_ns, slowest_ns = out.get(kind, (0, 0, 0))
            out[kind] = (count + s.count, total_ns + s.total_ns, max(slowest_ns, s.slowest_ns))
        return out
