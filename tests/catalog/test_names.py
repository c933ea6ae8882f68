"""Names: what may be one, and what an error says of one that may not."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tzfs.errors import InvalidArgument, NameTooLong, UsageError
from tzfs.names import (
    PUNCTUATION,
    STORE_SCOPE,
    FilesystemName,
    Scope,
    SnapshotName,
    parse,
    parse_filesystem,
    parse_property_target,
    parse_scope,
    parse_snapshot,
)

ALPHABET = "abzABZ019" + PUNCTUATION + "äßé中नि"
components = st.builds(
    lambda first, rest: unicodedata.normalize("NFC", first + rest),
    st.sampled_from("abzAZ09äé中न"),
    st.text(ALPHABET, max_size=20),
)
filesystems = st.builds(FilesystemName, st.one_of(st.just(""), components), components)


@pytest.mark.parametrize(
    "text", ["ws", "team/ws", "a", "0", "a-b_c.d:e+f", "Größe", "工作区", "नि", "2024-01-01T00:00", "a..b"]
)
def test_a_valid_name_is_given_back(text: str) -> None:
    assert str(parse_filesystem(text)) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("/", "ends with '/'"),
        ("//", "begins with '/'"),
        ("/etc/passwd", "begins with '/'"),
        ("../x", "'..' is a path"),
        ("x/..", "'..' is a path"),
        ("..", "'..' is a path"),
        (".", "'.' is a path"),
        ("./x", "'.' is a path"),
        (".zfs", "begins with '.'"),
        ("-rf", "begins with '-'"),
        ("ns/-rf", "begins with '-'"),
        ("_x", "begins with '_'"),
        ("ns/", "ends with '/'"),
        ("a//b", "more than one '/'"),
        ("a/b/c", "more than one '/'"),
        ("a b", "a blank is not allowed"),
        (" a", "begins with a blank"),
        ("a\n", "the control character '\\n' is not allowed"),
        ("a\0b", "the control character '\\x00' is not allowed"),
        ("a\x7f", "the control character '\\x7f' is not allowed"),
        ("\x1b[31m", "the control character '\\x1b'"),
        ("a\u202eb", "'\\u202e' is not allowed"),
        ("a\u200bb", "'\\u200b' is not allowed"),
        ("\u0301a", "begins with"),
        ("e\u0301", "composed form"),
        ("\udcff", "not valid UTF-8"),
        ("ws@snap", "'@' begins a snapshot's name"),
        ("ws#mark", "'#' is kept for bookmarks"),
        ("a*", "'*' is not allowed"),
        ("a\\b", "is not allowed"),
        ("a%b", "'%' is not allowed"),
        ("a=b", "'=' is not allowed"),
        ("a,b", "',' is not allowed"),
        ("$(id)", "begins with '$'"),
        ("~root", "begins with '~'"),
        ("😀", "begins with"),
    ],
)
def test_a_hostile_name_is_refused_in_printable_words_that_say_why(text: str, why: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_filesystem(text)
    message = str(caught.value)
    assert why in message
    assert message.isprintable()
    assert caught.value.hint is not None


def test_a_filesystem_name_has_255_bytes_at_most() -> None:
    assert str(parse_filesystem("n/" + "x" * 253)) == "n/" + "x" * 253
    with pytest.raises(NameTooLong, match="256 bytes, at most 255"):
        parse_filesystem("n/" + "x" * 254)
    with pytest.raises(NameTooLong, match="256 bytes"):
        parse_filesystem("é" * 128)
    with pytest.raises(NameTooLong) as caught:
        parse_filesystem("x" * 1_000_000)
    assert len(str(caught.value)) < 200


def test_a_snapshot_part_has_255_bytes_at_most_whatever_the_filesystem_takes() -> None:
    long = "x" * 255
    assert parse_snapshot(f"{long}@{long}").snapshot == long
    with pytest.raises(NameTooLong):
        parse_snapshot(f"ws@{long}x")


def test_a_snapshot_name_has_both_parts() -> None:
    assert parse("team/ws@before") == SnapshotName(FilesystemName("team", "ws"), "before")
    assert str(parse("team/ws@before")) == "team/ws@before"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ws", "has no '@'"),
        ("@a", "no filesystem stands before"),
        ("ws@", "is empty"),
        ("ws@a@b", "more than one '@'"),
        ("ws@..", "'..' is a path"),
        ("ws@a/b", "'/' is not allowed"),
        ("ws@-a", "begins with '-'"),
        ("ws@a#b", "'#'"),
        ("../ws@a", "'..' is a path"),
    ],
)
def test_a_bad_snapshot_name_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_snapshot(text)
    assert why in str(caught.value)


def test_scopes_end_with_a_slash() -> None:
    assert parse_scope("/") == STORE_SCOPE
    assert parse_scope("team/") == Scope("team")
    assert parse_property_target("team/") == Scope("team")
    assert parse_property_target("team/ws") == FilesystemName("team", "ws")
    assert parse_filesystem("team/ws").scope == Scope("team")
    assert parse_filesystem("ws").scope is None
    for text in ("", "team", "//", "a/b/", "../", "-a/", "x" * 255 + "/"):
        with pytest.raises(UsageError):
            parse_scope(text)


@given(filesystems)
def test_every_filesystem_name_survives_its_text(name: FilesystemName) -> None:
    assert parse_filesystem(str(name)) == name
    assert parse(f"{name}@s") == SnapshotName(name, "s")


@given(st.text())
def test_any_text_is_a_name_given_back_exactly_or_is_refused_in_print(text: str) -> None:
    refusal = None
    try:
        assert str(parse(text)) == text
    except UsageError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.isprintable()
    else:
        parts = text.replace("@", "/").split("/")
        assert all(part and part[0] not in ".-" and part.isprintable() and " " not in part for part in parts)
