"""Power cuts at any moment of any history: the folder that is found opens, passes every check, and is exactly what
stood at a commit, no earlier than the last one that was acknowledged.

A failure names the seeds that make the same image again.  `TZFS_CUTS` says how many are made at least, and
`TZFS_CUTS_SEED` from which history on.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests import tiers
from tests.crash import recovery, workload
from tests.crash.powercut import Disk, Event, Image, Kind, compiled, record, write_out
from tests.engine.batches import small_batches
from tests.engine.world import GUID
from tzfs.errors import TzfsError
from tzfs.opening import format_filesystem


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)


Allows = Callable[[object], bool]


@dataclass
class Recorded:
    """A history: the folder before and after, what was done to it in between."""

    before: Path
    after: Path
    events: list[Event]


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("recorder"))


def recorded(recorder: Path, where: Path, seed: int, count: int, *, cloned: bool = False) -> Recorded:
    """`cloned`: of a clone; its origin lies beside it, and images are to be made beside it too."""
    folder = where / "fs"
    folder.mkdir(parents=True, mode=0o700)
    if cloned:
        origin = where / f"{workload.PARTITION:016x}"
        origin.mkdir(mode=0o700)
        workload.clone(origin, folder)
    else:
        format_filesystem(folder, GUID, uid=0, gid=0)
    shutil.copytree(folder, where / "before", symlinks=True)
    events = record(recorder, folder, where / "log", workload.__name__, str(seed), str(count))
    return Recorded(where / "before", folder, events)


class Expected:
    """Which states a power cut may leave: those after each operation since the last one known to be durable, and the
    one after the operation that is under way, of the kind `under_way`."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.under_way = ""
        self._states: list[object] = []
        self._op = 0
        self._after: dict[int, object] = {}
        for event in events:
            if event.kind is Kind.MARK and "state" in (mark := json.loads(event.data)):
                self._after[mark["op"]] = mark["state"]

    def hear(self, data: bytes) -> None:
        mark = json.loads(data)
        self._op = mark["op"]
        if "begins" in mark:
            self.under_way = mark["begins"]
        if "state" in mark:
            if mark["durable"]:
                self._states.clear()
            self._states.append(mark["state"])

    def allows(self, found: object) -> bool:
        return found in self._states or found == self._after.get(self._op)

    def __str__(self) -> str:
        return f"operation {self._op}, {len(self._states)} states allowed, the last {self._states[-1]}"


def wrong_with(image: Image, where: Path, allows: Allows) -> str | None:
    """What is wrong with an image; None where it is as it must be."""
    shutil.rmtree(where, ignore_errors=True)
    write_out(image, where)
    try:
        with recovery.recovered(where) as writer:
            engine = writer.engine
            if problems := engine.problems():
                return f"check: {problems[0]} and {len(problems) - 1} more"
            found = workload.state_of(engine)
            if not allows(found):
                return f"found {found}"
            while engine.background_step():
                engine.commit()
            if problems := engine.problems():
                return f"check after background work: {problems[0]} and {len(problems) - 1} more"
            if workload.state_of(engine) != found or engine.drift:
                return f"background work changed what is seen, or drifted: {engine.drift}"
    except TzfsError as error:
        return f"{type(error).__name__}: {error}"
    return None


def moments(events: Sequence[Event], r: random.Random, count: int) -> Counter[int]:
    """At which events the power goes: at any, and as often at one that makes something durable."""
    first = next(i for i, event in enumerate(events) if event.kind is Kind.MARK)
    anywhere = range(first + 1, len(events))
    durable = [i for i in anywhere if events[i].kind is Kind.SYNC or events[i].durable]
    return Counter(r.choice(durable) if durable and r.random() < 0.5 else r.choice(anywhere) for _ in range(count))


def cut(
    history: Recorded,
    where: Path,
    *,
    seed: int,
    images: int,
    events: Sequence[Event] | None = None,
    during: Counter[str] | None = None,
    wrong: Callable[[Image, Path, Allows], str | None] | None = None,
) -> list[str]:
    """Makes images of a history; what is `wrong` with each that is not as it must be.

    `during` counts what was under way at each.
    """
    wrong = wrong or wrong_with
    events = history.events if events is None else events
    at = moments(events, random.Random(seed), images)
    disk, expected, failures = Disk(history.before), Expected(events), []
    for i, event in enumerate(events):
        disk.begin(event)
        for number in range(at[i]):
            image_seed = f"{seed}/{i}/{number}"
            if during is not None:
                during[expected.under_way] += 1
            found = wrong(disk.image(random.Random(image_seed)), where / "image", expected.allows)
            if found is not None:
                failures.append(f"image {image_seed}, at {event.kind.name} {event.path}, {expected}: {found}")
        disk.end(event)
        if event.kind is Kind.MARK:
            expected.hear(event.data)
    return failures


def cut_again(history: Recorded, recorder: Path, where: Path, *, seed: int, images: int) -> list[str]:
    """The power goes, and goes again while a writer recovers: it must come to what one recovery comes to."""
    r = random.Random(seed)
    (first,) = moments(history.events, r, 1)
    disk = Disk(history.before)
    disk.follow(history.events[:first])
    disk.begin(history.events[first])
    before, folder = where / "cut once", where / "recovering"
    for each in (before, folder):
        shutil.rmtree(each, ignore_errors=True)
        write_out(disk.image(random.Random(f"{seed}/{first}")), each)
    log = where / f"log-{seed}"
    events = record(recorder, folder, log, recovery.__name__)
    with recovery.recovered(folder) as writer:
        found = workload.state_of(writer.engine)
    failures, again = [], Disk(before)
    at = moments(events, r, images)
    for i, event in enumerate(events):
        again.begin(event)
        for number in range(at[i]):
            image = again.image(random.Random(f"{seed}/{first}/{i}/{number}"))
            wrong = wrong_with(image, where / "image", lambda state: state == found)
            if wrong is not None:
                failures.append(f"seed {seed}, first cut {first}, second {i}/{number}, {event.kind.name}: {wrong}")
        again.end(event)
    return failures


def test_the_record_replayed_is_the_folder_itself(recorder: Path, tmp_path: Path) -> None:
    kinds: set[Kind] = set()
    synced: set[str] = set()
    for seed in range(4):
        history = recorded(recorder, tmp_path / str(seed), seed, 150)
        disk = Disk(history.before)
        disk.follow(history.events)
        found = {path: node and bytes(node) for path, node in disk.whole().items()}
        there = {path: node and bytes(node) for path, node in Disk(history.after).whole().items()}
        assert sorted(found) == sorted(there)
        assert [path for path in there if found[path] != there[path]] == []
        kinds |= {event.kind for event in history.events}
        synced |= {event.path for event in history.events if event.durable}
    assert {"redo", "meta/data.mdb"} <= synced
    assert {Kind.WRITE, Kind.SYNC, Kind.PUNCH, Kind.CREATE, Kind.UNLINK, Kind.EXCHANGE, Kind.MARK} <= kinds


def test_a_power_cut_leaves_a_commit_no_older_than_the_last_acknowledged(recorder: Path, tmp_path: Path) -> None:
    failures: list[str] = []
    for seed in range(3):
        history = recorded(recorder, tmp_path / str(seed), seed, 120)
        failures += [f"history {seed}, {wrong}" for wrong in cut(history, tmp_path, seed=seed, images=20)]
    assert failures == [], "\n".join(failures)


def test_a_power_cut_while_a_clone_is_changed_and_flattened_leaves_a_commit(recorder: Path, tmp_path: Path) -> None:
    failures: list[str] = []
    for seed in range(2):
        place = tmp_path / str(seed)
        history = recorded(recorder, place, seed, 100, cloned=True)
        failures += [f"history {seed}, {wrong}" for wrong in cut(history, place, seed=seed, images=20)]
        failures += cut_again(history, recorder, place, seed=seed, images=5)
    assert failures == [], "\n".join(failures)


def test_a_power_cut_during_recovery_changes_nothing(recorder: Path, tmp_path: Path) -> None:
    history = recorded(recorder, tmp_path / "history", 11, 120)
    failures: list[str] = []
    for seed in range(3):
        failures += cut_again(history, recorder, tmp_path, seed=seed, images=8)
    assert failures == [], "\n".join(failures)


@pytest.mark.parametrize("forgotten", ["meta/data.mdb", "redo", "segments"])
def test_a_sync_that_is_left_out_is_noticed(recorder: Path, tmp_path: Path, forgotten: str) -> None:
    for seed in range(7, 12):  # not every history depends on every sync
        history = recorded(recorder, tmp_path / str(seed), seed, 120)
        lying = [
            replace(event, durable=event.durable and not event.path.startswith(forgotten))
            for event in history.events
            if event.kind is not Kind.SYNC or not event.path.startswith(forgotten)
        ]
        if cut(history, tmp_path, seed=1, images=40, events=lying):
            return
    pytest.fail(f"nobody noticed that {forgotten} was not synced")


@tiers.patient
def test_many_power_cuts_each_leave_a_commit(recorder: Path, tmp_path: Path) -> None:
    seed = tiers.number("CUTS_SEED", short=100)
    left = tiers.number("CUTS", short=120, long=2000)
    made = 0
    failures: list[str] = []
    during: Counter[str] = Counter()
    while made < left and len(failures) < 20:
        place = tmp_path / str(seed)
        try:
            history = recorded(recorder, place, seed, 200, cloned=seed % 3 == 2)
        except AssertionError as error:  # others may go on to show something
            failures.append(str(error))
            seed += 1
            continue
        found = cut(history, place, seed=seed, images=50, during=during)
        failures += [f"history {seed}, {wrong}" for wrong in found]
        failures += cut_again(history, recorder, place, seed=seed, images=10)
        during["recovery"] += 10
        shutil.rmtree(place)
        made, seed = made + 60, seed + 1
        print(f"history {seed - 1}: {made} images in all, {len(failures)} failures", flush=True)
    print(f"at {dict(sorted(during.items()))}", flush=True)
    assert failures == [], "\n".join(failures)
    assert made < 2000 or set(workload.OFTEN) <= during.keys()
