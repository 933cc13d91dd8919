"""Strict YAML."""

from __future__ import annotations

import enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab.base.yaml import (
    YAML_BYTES_MAX,
    YAML_DEPTH_MAX,
    Bytes,
    Flag,
    Number,
    Seconds,
    StrictModel,
    Whole,
    load_documents,
    read_documents,
)
from agentlab.errors import SettingsInvalid


class Mode(enum.StrEnum):
    OFF = "off"
    NAT = "nat"


class Inner(StrictModel):
    mode: Mode = Mode.NAT


class Thing(StrictModel):
    name: str
    keep: Flag = False
    count: Whole = 0
    share: Number = 1.0
    size: Bytes = 0
    wait: Seconds = 0
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    env: dict[str, str] = {}


def problems(text: bytes) -> list[str]:
    with pytest.raises(SettingsInvalid) as caught:
        load_documents(text, "thing.yaml", Thing)
    return str(caught.value).splitlines()


def value(text: str) -> object:
    return read_documents(text.encode(), "x.yaml")[0].value["v"]


def test_a_document_becomes_a_checked_value_that_knows_its_line() -> None:
    [found] = load_documents(b"\n\nname: x\nsize: 2MiB\nwait: 1h30m\n", "thing.yaml", Thing)

    assert found.value == Thing(name="x", size=2 << 20, wait=5400)
    assert found.place == "thing.yaml:3"


def test_every_document_of_a_stream_is_read_and_empty_ones_are_passed_over() -> None:
    found = load_documents(b"---\nname: a\n---\n---\n# nothing\n---\nname: b\n", "thing.yaml", Thing)

    assert [(each.value.name, each.line) for each in found] == [("a", 2), ("b", 7)]


def test_an_empty_file_has_no_documents() -> None:
    assert load_documents(b"", "thing.yaml", Thing) == []
    assert load_documents(b"# only a remark\n", "thing.yaml", Thing) == []


def test_problems_of_all_documents_are_told_at_once_in_the_order_of_the_file() -> None:
    assert problems(b"nam: x\n---\nname: y\nkeep: 1\n") == [
        "thing.yaml:1:1: 'name' is missing",
        "thing.yaml:1:1: unknown key 'nam'. Did you mean 'name'?",
        "thing.yaml:4:7: keep: expected true or false, not 1",
    ]


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "On", "NO", "y", "n"])
def test_words_that_yaml_1_1_takes_for_booleans_stay_words(word: str) -> None:
    assert value(f"v: {word}") == word


def test_mode_off_is_the_word_off() -> None:
    [found] = load_documents(b"name: x\ninner: {mode: off}\n", "thing.yaml", Thing)

    assert found.value.inner.mode is Mode.OFF


def test_yes_where_a_boolean_belongs_is_refused_with_what_to_write() -> None:
    assert problems(b"name: x\nkeep: yes\n") == ["thing.yaml:2:7: keep: expected true or false, not 'yes'; write true"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", 12),
        ("-3", -3),
        ("0x1F", 31),
        ("0o17", 15),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("true", True),
        ("~", None),
        ("", None),
        ("'12'", "12"),
        ("0755", "0755"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        (".nan", ".nan"),
        ("=", "="),
    ],
)
def test_plain_scalars_follow_the_core_schema_and_ambiguous_numbers_stay_text(text: str, expected: object) -> None:
    found = value(f"v: {text}")

    assert (found, type(found)) == (expected, type(expected))


def test_a_number_where_text_belongs_is_refused_with_its_own_spelling_in_quotes() -> None:
    assert problems(b"name: 1.10\n") == ['thing.yaml:1:7: name: expected text, not 1.10; put it in quotes: "1.10"']


def test_a_key_that_is_given_twice_is_refused_with_both_lines() -> None:
    assert problems(b"name: x\nkeep: true\nname: y\n") == [
        "thing.yaml:3:1: the key 'name' is given twice; the first is in line 1"
    ]


def test_an_unknown_key_in_a_list_of_mappings_suggests_from_that_mapping() -> None:
    assert problems(b"name: x\nmany:\n  - mdoe: nat\n") == ["thing.yaml:3:5: unknown key 'mdoe'. Did you mean 'mode'?"]


def test_an_unknown_word_of_an_enumeration_names_them_all() -> None:
    assert problems(b"name: x\ninner: {mode: nta}\n") == [
        "thing.yaml:2:15: inner.mode: 'nta' is not one of off, nat; did you mean 'nat'?"
    ]


def test_invalid_utf8_is_named_with_its_byte_and_place() -> None:
    assert problems(b"name: x\n# caf\xe9\n") == ["thing.yaml:2:6: not UTF-8: byte 0xe9"]


def test_a_byte_order_mark_is_not_part_of_the_first_key() -> None:
    assert load_documents(b"\xef\xbb\xbfname: x\n", "thing.yaml", Thing)[0].value.name == "x"


def test_control_characters_are_named_with_their_place() -> None:
    assert problems(b"name: a\x07b\n") == ["thing.yaml:1:8: the character U+0007 is not allowed in YAML"]


def test_a_file_beyond_the_limit_is_refused_before_it_is_parsed() -> None:
    assert problems(b"#" * (YAML_BYTES_MAX + 1)) == [
        f"thing.yaml:1:1: larger than its limit: YAML_BYTES_MAX = {YAML_BYTES_MAX} bytes"
    ]


def test_deep_nesting_is_refused_instead_of_exhausting_the_stack() -> None:
    assert problems(b"name: " + b"[" * 50_000) == [
        f"thing.yaml:1:{6 + YAML_DEPTH_MAX}: nested deeper than the limit: YAML_DEPTH_MAX = {YAML_DEPTH_MAX}"
    ]


def test_the_billion_laughs_are_refused_for_their_aliases() -> None:
    found = problems(b"a: &a [x, x]\nb: &b [*a, *a]\nname: [*b, *b]\n")

    assert found[0] == "thing.yaml:1:4: anchors are refused: remove &a"
    assert "thing.yaml:2:8: aliases are refused: write out what *a means" in found


def test_more_problems_than_anyone_reads_are_counted() -> None:
    found = problems(b"name: x\n" + b"".join(b"k%d: 1\n" % number for number in range(130)))

    assert (len(found), found[-1]) == (101, "and 30 more")


def test_escape_sequences_in_a_file_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in "\n".join(problems(b'"k\\e[31m": 1\nname: "x"\n'))


def refusal(text: bytes) -> str:
    """What is said against the text; only a place if it is accepted."""
    try:
        load_documents(text, "thing.yaml", Thing)
    except SettingsInvalid as error:
        return str(error)
    return "thing.yaml:"


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    assert refusal(text).startswith("thing.yaml:")


@given(st.text(alphabet="name: -[]{}&*!|>'\"#%@`,?\n\t0yo~", max_size=120))
def test_any_text_of_yaml_characters_is_read_or_refused(text: str) -> None:
    assert refusal(text.encode()).startswith("thing.yaml:")
