"""Compression in the engine: what is stored how, what partial writes do to it, and what damage does."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.engine.conftest import Workspace
from tests.engine.streams import into, sent, tree
from tests.noise import noise
from tzfs.engine.check.problems import Problem, Rule
from tzfs.engine.check.run import check
from tzfs.engine.compression import Compression, Decoded, load
from tzfs.engine.engine import Engine, Settings
from tzfs.engine.reads import slices_at
from tzfs.errors import CorruptionError, InvalidArgument
from tzfs.format import keys, records
from tzfs.format.keys import ExtentId, Table
from tzfs.format.slices import CODEC_LZ4, CODEC_RAW, CODEC_ZSTD, NOWHERE, Slice, pack_slices
from tzfs.format.superblock import CODECS
from tzfs.limits import DECODED_BYTES_MAX, EXTENT_BYTES_MAX, PAGE_BYTES
from tzfs.native import Buffer, page_sums
from tzfs.native.codecs import Compressor, decompress
from tzfs.store.memory import MemoryPayload

CHUNK = 128 * 1024
CODECS_OF = {"lz4": CODEC_LZ4, "zstd": CODEC_ZSTD, "zstd-1": CODEC_ZSTD, "zstd-9": CODEC_ZSTD}


def words(size: int, seed: int = 1) -> bytes:
    """Text that compresses to about a third."""
    r, out = random.Random(seed), bytearray()
    while len(out) < size:
        out += b"%d %s\n" % (r.randrange(1 << 40), b"the same again " * r.randrange(1, 4))
    return bytes(out[:size])


def compressing(ws: Workspace, name: str) -> Engine:
    ws.engine.configure(replace(ws.engine.settings, compression=Compression.named(name)))
    return ws.engine


def stored(engine: Engine, ino: int, index: int = 0) -> tuple[Slice, ...]:
    engine.commit()
    return slices_at(engine._head.txn, engine.inode(ino).data, index, engine.counters.epoch, [])


@pytest.fixture(params=list(CODECS_OF))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_chunk_takes_the_pages_of_what_it_compresses_to(ws: Workspace, name: str) -> None:
    engine, text = compressing(ws, name), words(CHUNK)
    ino = ws.file(b"f", text)
    (s,) = stored(engine, ino)
    assert (s.codec, s.raw_bytes, s.length, len(s.sums)) == (CODECS_OF[name], CHUNK, CHUNK, 4)
    assert s.stored_bytes < CHUNK * 2 // 3
    assert engine.read(ino, 0, CHUNK) == text
    assert engine.superblock.has(CODECS)


def test_what_does_not_save_a_page_is_stored_raw_and_needs_no_feature(ws: Workspace, name: str) -> None:
    engine = compressing(ws, name)
    inos = [ws.file(b"noise", noise(CHUNK)), ws.file(b"nearly", noise(CHUNK - 3000) + bytes(3000))]
    assert [stored(engine, ino)[0].codec for ino in inos] == [CODEC_RAW, CODEC_RAW]
    assert not engine.superblock.has(CODECS)


@pytest.mark.parametrize("size", [4001, 4096, 9000, CHUNK])
def test_a_chunk_of_less_than_a_page_lies_in_its_record(ws: Workspace, name: str, size: int) -> None:
    engine, text = compressing(ws, name), b"again and again " * (size // 16) + bytes(size % 16)
    ino = ws.file(b"f", text)
    (s,) = stored(engine, ino)
    assert ((s.extent, s.birth), s.embedded[:1] != b"", s.sums) == (NOWHERE, True, b"")
    assert not ws.payload.segments()
    ws.restart()
    assert ws.engine.read(ino, 0, size) == text
    assert ws.engine.read(ino, size - 100, 50) == text[-100:-50]


def test_of_a_file_that_does_not_compress_less_and_less_is_tried(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bytes] = []
    encode = Compressor.encode

    def counted(self: Compressor, codec: int, level: int, data: Buffer, room: int) -> tuple[bytes, bytes]:
        if room:
            tried.append(bytes(data))
        return encode(self, codec, level, data, room)

    monkeypatch.setattr(Compressor, "encode", counted)
    engine, dull, text = compressing(ws, "lz4"), noise(32 * CHUNK), words(CHUNK)
    ino, other = ws.file(b"f", dull + 10 * text), ws.file(b"g", text)
    engine.commit()
    pieces = [dull[i * CHUNK : (i + 1) * CHUNK] for i in range(32)]
    assert tried[:6] == [pieces[i] for i in (0, 2, 5, 10, 19, 28)]
    assert tried[6] == text, "the 37th piece"
    codecs = [stored(engine, ino, i)[0].codec for i in range(42)]
    assert codecs == [CODEC_RAW] * 37 + [CODEC_LZ4] * 5
    assert stored(engine, other)[0].codec == CODEC_LZ4
    assert engine.plan_read(ino, 0, 42 * CHUNK).execute() == dull + 10 * text


def test_off_compresses_nothing_any_more_and_reads_what_was(ws: Workspace) -> None:
    engine = compressing(ws, "zstd")
    ino = ws.file(b"f", words(2 * CHUNK))
    engine.commit()
    compressing(ws, "off")
    engine.write(ino, CHUNK, words(CHUNK, seed=2))
    assert [stored(engine, ino, index)[0].codec for index in (0, 1)] == [CODEC_ZSTD, CODEC_RAW]
    assert engine.read(ino, 0, 2 * CHUNK) == words(CHUNK) + words(CHUNK, seed=2)


def test_a_small_overwrite_of_a_compressed_extent_leaves_it_and_is_stored_beside_it(ws: Workspace, name: str) -> None:
    engine, text = compressing(ws, name), bytearray(words(CHUNK))
    ino = ws.file(b"f", bytes(text))
    (whole,) = stored(engine, ino)
    engine.snapshot("before")
    engine.write(ino, 50_000, b"y" * 3000)
    text[50_000:53_000] = b"y" * 3000
    left, new, right = stored(engine, ino)
    assert (left.extent, right.extent, right.extent_offset) == (whole.extent, whole.extent, 53_000)
    assert (new.codec, new.length) == (CODEC_RAW, 3000)
    for offset, size in ((0, CHUNK), (49_990, 20), (52_990, 20), (53_000, 1), (CHUNK - 1, 1)):
        assert engine.read(ino, offset, size) == text[offset : offset + size]
    assert engine.view("before").read(ino, 0, CHUNK) == words(CHUNK)


def test_a_write_into_an_embedded_chunk_takes_it_along(ws: Workspace, name: str) -> None:
    engine, text = compressing(ws, name), bytearray(b"a" * 20_000)
    ino = ws.file(b"f", bytes(text))
    assert stored(engine, ino)[0].embedded
    engine.snapshot("before")
    for offset, piece in ((5000, b"small"), (100, noise(8000)), (30_000, b"beyond")):
        engine.write(ino, offset, piece)
        text.extend(bytes(max(0, offset + len(piece) - len(text))))
        text[offset : offset + len(piece)] = piece
        engine.commit()
        assert engine.read(ino, 0, 1 << 20) == text
        ws.assert_sound()
    assert not any(s.embedded for s in stored(engine, ino))
    assert engine.view("before").read(ino, 0, 1 << 20) == b"a" * 20_000


def test_a_truncated_embedded_chunk_grows_again_with_zeros(ws: Workspace, name: str) -> None:
    engine = compressing(ws, name)
    ino = ws.file(b"f", b"a" * 20_000)
    engine.commit()
    engine.setattr(ino, size=7000)
    (s,) = stored(engine, ino)
    assert (bool(s.embedded), s.length, s.raw_bytes) == (True, 7000, 20_000)
    engine.setattr(ino, size=10_000)
    assert engine.read(ino, 0, 1 << 20) == b"a" * 7000 + bytes(3000)
    ws.restart()
    assert ws.engine.read(ino, 0, 1 << 20) == b"a" * 7000 + bytes(3000)


def test_an_embedded_chunk_that_cannot_be_read_stays_for_whoever_reads_it(ws: Workspace) -> None:
    engine = compressing(ws, "lz4")
    ino = ws.file(b"f", b"a" * 20_000)
    engine.commit()
    txn, prefix = engine._head.txn, keys.chunk(engine.inode(ino).data, 0)
    key = prefix + keys.suffix(1)
    (s,) = stored(engine, ino)
    bad = s._replace(embedded=b"\xff" * s.stored_bytes)
    txn.put(Table.CHUNK, key, records.seal(Table.CHUNK, key, pack_slices((bad,))))
    engine.write(ino, 5000, b"new")
    left, new, right = stored(engine, ino)
    assert (left.embedded, left.extent == right.extent, left.extent > 0) == (b"", True, True)
    assert engine.read(ino, new.offset, 3) == b"new"
    with pytest.raises(CorruptionError, match="is not what was compressed"):
        engine.read(ino, 0, 100)
    ws.assert_sound()


# -- what comes from elsewhere -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sender", ["off", "lz4"])
def test_what_is_received_is_compressed_as_it_is_here(make: type[Workspace], sender: str) -> None:
    source, target = make(), make()
    contents = {b"text": words(3 * CHUNK), b"noise": noise(CHUNK), b"page": b"again" * 2000, b"small": b"small"}
    engine = compressing(source, sender)
    inos = {name: source.file(name, body) for name, body in contents.items()}
    engine.setxattr(inos[b"text"], b"user.long", b"v" * 30_000)
    engine.snapshot("a")
    engine.write(inos[b"text"], CHUNK, words(CHUNK, seed=3))
    engine.snapshot("b")
    here = compressing(target, "zstd")
    into(here, sent(engine, "a"))
    into(here, sent(engine, "b", "a"))
    assert [tree(here.view(name)) for name in "ab"] == [tree(engine.view(name)) for name in "ab"]
    texts = [stored(here, inos[b"text"], index)[0] for index in range(3)]
    assert [s.codec for s in texts] == [CODEC_ZSTD] * 3
    assert stored(here, inos[b"noise"])[0].codec == CODEC_RAW
    (page,) = stored(here, inos[b"page"])
    assert (page.codec, bool(page.embedded)) == (CODEC_ZSTD, True)
    assert here.superblock.has(CODECS)
    target.assert_sound()
    compressing(target, "off")
    engine.write(inos[b"text"], 0, words(CHUNK, seed=4))
    engine.snapshot("c")
    into(here, sent(engine, "c", "b"))
    assert [stored(here, inos[b"text"], index)[0].codec for index in range(3)] == [CODEC_RAW, CODEC_ZSTD, CODEC_ZSTD]
    target.assert_sound()
    for workspace in (source, target):
        workspace.engine.close()


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def extent(make: Callable[[], Workspace], name: str) -> Iterator[tuple[Workspace, int, Slice]]:
    workspace = make()
    engine = compressing(workspace, name)
    ino = workspace.file(b"f", words(CHUNK))
    (s,) = stored(engine, ino)
    yield workspace, ino, s
    engine.close()


@pytest.mark.parametrize("at", [0, 1, 1000, -1])
def test_a_flipped_bit_is_corruption_and_a_scrub_finds_it(extent: tuple[Workspace, int, Slice], at: int) -> None:
    ws, ino, s = extent
    assert ws.engine.read(ino, 0, 10) == words(10)  # a scrub must not be content with what this keeps
    place = keys.extent_offset(s.extent) + at % s.stored_bytes
    ws.payload._live[s.extent >> 32][place] ^= 1
    found = [p.rule for p in check(ws.engine._head.txn, ws.payload, read_payload=True) if isinstance(p, Problem)]
    assert found == [Rule.PAYLOAD]
    ws.payload = ws.payload.after_crash()
    ws.payload._live[s.extent >> 32][place] ^= 1
    again = Engine(ws.meta.after_crash(), ws.payload, settings=Settings())
    with pytest.raises(CorruptionError, match=rf"contents of inode {ino}: .* does not match its sum"):
        again.read(ino, 0, 10)
    again.close()


@pytest.mark.parametrize(
    "lie",
    [
        lambda s: s._replace(raw_bytes=1 << 31),
        lambda s: s._replace(raw_bytes=EXTENT_BYTES_MAX + 1),
        lambda s: s._replace(raw_bytes=CHUNK + 1),
        lambda s: s._replace(raw_bytes=CHUNK - 1),
        lambda s: s._replace(raw_bytes=0),
        lambda s: s._replace(stored_bytes=(1 << 32) - 1),
        lambda s: s._replace(stored_bytes=0),
        lambda s: s._replace(stored_bytes=17),
        lambda s: s._replace(codec=3),
        lambda s: s._replace(codec=0x11),
        lambda s: s._replace(sums=b""),
        lambda s: s._replace(sums=bytes(8)),
    ],
)
def test_whatever_a_slice_claims_is_corruption(
    extent: tuple[Workspace, int, Slice], lie: Callable[[Slice], Slice]
) -> None:
    ws, _, s = extent
    with pytest.raises(CorruptionError):
        load(ws.payload, lie(s), Decoded(), wait=True)


@pytest.mark.parametrize("seed", range(20))
def test_noise_in_place_of_what_was_compressed_is_an_error_or_has_the_length(name: str, seed: int) -> None:
    r, text = random.Random(seed), words(20_000)
    _, made, _, _ = Compression.named(name).encode(Compressor(), text, alone=False)
    assert len(made) < len(text)
    for _ in range(50):
        bad = bytearray(made)
        for _ in range(r.randrange(1, 5)):
            bad[r.randrange(len(bad))] = r.randrange(256)
        s = Slice(
            0, 20_000, *NOWHERE, 0, 20_000, len(bad), CODECS_OF[name], b"", bytes(bad[: r.randrange(1, len(bad))])
        )
        try:
            raw = load(MemoryPayload(), s, Decoded(), wait=True)
        except CorruptionError:
            continue
        assert raw is not None
        assert len(raw) == 20_000


# -- the parts ---------------------------------------------------------------------------------------------------------


def test_the_property_says_what_is_compressed_with() -> None:
    said = {name: tuple(Compression.named(name)) for name in ("off", "on", "lz4", "zstd", "zstd-19")}
    assert said == {"off": (0, 0), "on": (1, 0), "lz4": (1, 0), "zstd": (2, 3), "zstd-19": (2, 19)}
    for wrong in ("", "gzip", "lz4-3", "zstd-", "zstd-x"):
        with pytest.raises(InvalidArgument):
            Compression.named(wrong)


def test_what_is_compressed_saves_a_page_or_is_alone() -> None:
    compressor, lz4 = Compressor(), Compression.named("lz4")
    for compression, raw, alone, codec in (
        (lz4, bytes(PAGE_BYTES), False, CODEC_RAW),
        (lz4, bytes(PAGE_BYTES), True, CODEC_LZ4),
        (lz4, bytes(PAGE_BYTES + 1), False, CODEC_LZ4),
        (lz4, noise(4500) + bytes(100), True, CODEC_RAW),
        (Compression(), bytes(CHUNK), True, CODEC_RAW),
        (lz4, b"", True, CODEC_RAW),
        (lz4, b"", False, CODEC_RAW),
        (lz4, b"x", True, CODEC_RAW),
    ):
        found, stored, sums, _ = compression.encode(compressor, raw, alone=alone)
        assert found == codec
        if codec == CODEC_RAW:
            assert (stored, sums) == (raw, page_sums(raw))


def test_what_was_decompressed_is_kept_within_a_bound() -> None:
    decoded = Decoded()
    pieces = [
        Slice(0, 1, ExtentId(n), keys.Epoch(1), 0, CHUNK, 1, CODEC_LZ4, bytes(4))
        for n in range(2 * DECODED_BYTES_MAX // CHUNK)
    ]
    for s in pieces:
        decoded.put(s, bytearray(CHUNK))
        assert decoded.get(pieces[0]) is not None  # used all the time, and so not the longest unused
    assert sum(decoded.get(s) is not None for s in pieces) == DECODED_BYTES_MAX // CHUNK


def test_a_small_read_decompresses_what_the_next_one_needs(ws: Workspace) -> None:
    engine = compressing(ws, "zstd")
    ino = ws.file(b"f", words(CHUNK))
    (s,) = stored(engine, ino)
    assert engine.read(ino, 0, 100) == words(CHUNK)[:100]
    ws.payload.in_memory = False  # no second read comes to the payload
    plan = engine.plan_read(ino, 70_000, 100)
    assert plan.try_now() == words(CHUNK)[70_000:70_100]
    ws.payload.in_memory = True
    assert s.codec == CODEC_ZSTD


def test_lz4_is_read_as_its_specification_says() -> None:
    text = words(30_000) + bytes(1000) + noise(500)
    made = Compressor().encode(CODEC_LZ4, 0, text, len(text))
    assert _plain_lz4(made[0]) == text == decompress(CODEC_LZ4, made[0], len(text), made[1])


def _plain_lz4(block: bytes) -> bytes:
    """The block format of LZ4, written down once more."""
    out, at = bytearray(), 0

    def length(first: int) -> int:
        nonlocal at
        total = first
        if first == 15:
            while True:
                more = block[at]
                at += 1
                total += more
                if more < 255:
                    break
        return total

    while at < len(block):
        token = block[at]
        at += 1
        literals = length(token >> 4)
        out += block[at : at + literals]
        at += literals
        if at == len(block):
            break
        back = block[at] | block[at + 1] << 8
        at += 2
        for _ in range(length(token & 15) + 4):
            out.append(out[-back])
    return bytes(out)


def test_settings_begin_without_compression() -> None:
    assert Settings().compression == Compression()
