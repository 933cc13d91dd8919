"""DNS messages from hostile sandboxes and from anyone who answers."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab.network import dns_message
from agentlab.network.dns_message import Malformed

NAME = b"\x03www\x07example\x04test\x00"
QUESTION = NAME + b"\x00\x01\x00\x01"
QUERY = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + QUESTION
EDNS = b"\x00\x00\x29\x10\x00\x00\x00\x80\x00\x00\x08\x00\x08\x00\x04secr"
A_RECORD = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04"


def test_a_plain_question_is_read() -> None:
    question = dns_message.parse_question(QUERY)

    assert (question.id, question.name, question.type, question.klass) == (0x1234, NAME, 1, 1)
    assert (question.edns, question.udp_bytes_max) == (False, 512)


def test_it_is_asked_anew_under_another_id_and_without_the_sandboxs_options() -> None:
    with_options = QUERY[:10] + b"\x00\x01" + QUESTION + EDNS
    question = dns_message.parse_question(with_options)

    asked = dns_message.ask(question, 0xBEEF)

    assert asked[:2] == b"\xbe\xef"
    assert asked[12:].startswith(QUESTION)
    assert b"secr" not in asked
    assert (question.edns, question.dnssec, question.udp_bytes_max) == (True, True, 1232)
    assert dns_message.parse_question(asked).name == NAME


def test_who_asks_without_edns_is_not_answered_with_it() -> None:
    assert dns_message.ask(dns_message.parse_question(QUERY), 0x1234) == QUERY


@pytest.mark.parametrize(
    "message",
    [
        b"",
        QUERY[:11],
        QUERY[:-1],
        QUERY[:-5],
        b"\x12\x34\x81\x00" + QUERY[4:],  # an answer
        b"\x12\x34\x29\x00" + QUERY[4:],  # an update
        QUERY[:4] + b"\x00\x02" + QUERY[6:],  # two questions
        QUERY[:6] + b"\x00\x01" + QUERY[8:],  # records in a query
        QUERY[:12] + b"\xc0\x0c\x00\x01\x00\x01",  # a name that points to itself
        QUERY[:12] + b"\x40" + bytes(64) + b"\x00\x00\x01\x00\x01",  # a label of 64 bytes
        QUERY[:12] + b"\x3f" + b"a" * 63 + (b"\x3f" + b"b" * 63) * 4 + b"\x00\x00\x01\x00\x01",  # a name of 321 bytes
        QUERY[:-4] + b"\x00\xfc\x00\x01",  # AXFR
        QUERY[:-2] + b"\x00\x03",  # class CHAOS
        QUERY[:10] + b"\x00\x01" + QUESTION + EDNS[:-1],
        QUERY[:10] + b"\x00\x01" + QUESTION + b"\x01a" + EDNS,
    ],
)
def test_anything_else_is_malformed(message: bytes) -> None:
    with pytest.raises(Malformed):
        dns_message.parse_question(message)


def test_an_answer_to_the_question_is_taken_with_its_addresses() -> None:
    question = dns_message.parse_question(QUERY)

    answer = dns_message.parse_answer(
        question, 7, _answer(7, A_RECORD + b"\x01\x01\x01\x0a" + A_RECORD + b"\x0a\x00\x00\x01")
    )

    assert answer.addresses == (IPv4Address("1.1.1.10"), IPv4Address("10.0.0.1"))
    assert dns_message.points_into(answer.addresses, [IPv4Network("10.0.0.0/8")])
    assert not dns_message.points_into(answer.addresses[:1], [IPv4Network("10.0.0.0/8")])


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(lambda: _answer(8, b""), id="another id"),
        pytest.param(lambda: QUERY[:12] + QUESTION, id="a query"),
        pytest.param(lambda: _answer(7, b"").replace(b"www", b"xxx"), id="another name"),
        pytest.param(lambda: _answer(7, A_RECORD + b"\x01\x01\x01"), id="a cut record"),
        pytest.param(lambda: _answer(7, b"\xff\xff" + A_RECORD[2:] + b"\x01\x01\x01\x01"), id="a pointer forwards"),
        pytest.param(lambda: _answer(7, A_RECORD[:-1] + b"\x05abcde"), id="an address of five bytes"),
        pytest.param(lambda: _answer(7, A_RECORD + b"\x01\x01\x01\x01", count=600), id="too many records"),
    ],
)
def test_what_does_not_answer_it_well_is_malformed(message: object) -> None:
    question = dns_message.parse_question(QUERY)

    with pytest.raises(Malformed):
        dns_message.parse_answer(question, 7, message())  # type: ignore[operator]


def test_the_case_of_a_name_does_not_matter() -> None:
    question = dns_message.parse_question(QUERY)

    assert dns_message.parse_answer(question, 7, _answer(7, b"").replace(b"www", b"wWw")).addresses == ()


def test_a_reply_bears_the_askers_id_and_fits_its_datagram() -> None:
    question = dns_message.parse_question(QUERY)
    records = (A_RECORD + b"\x01\x01\x01\x01") * 40
    answer = dns_message.parse_answer(question, 7, _answer(7, records))

    whole, cut = dns_message.reply(question, answer, 65535), dns_message.reply(question, answer, 512)

    assert whole[:2] == cut[:2] == b"\x12\x34"
    assert len(whole) > 512
    assert cut[2] & 0x02
    assert len(cut) == len(QUERY)


def test_a_refusal_repeats_the_question() -> None:
    question = dns_message.parse_question(QUERY)

    refused = dns_message.refuse(question, dns_message.SERVER_FAILURE)

    assert refused[:2] == b"\x12\x34"
    assert refused[3] & 0x0F == 2
    assert refused[12:] == QUESTION


@given(message=st.binary(max_size=600))
def test_no_bytes_of_a_sandbox_do_harm(message: bytes) -> None:
    try:
        question = dns_message.parse_question(message)
    except Malformed:
        refused = dns_message.refuse_malformed(message)
        assert refused is None or len(refused) == 12
        return
    assert len(question.name) <= dns_message.NAME_BYTES_MAX
    assert dns_message.parse_question(dns_message.ask(question, 1)).section == question.section


@given(tail=st.binary(max_size=300), counts=st.tuples(*[st.integers(0, 20)] * 3), flags=st.integers(0, 0xFFFF))
def test_no_bytes_of_an_answer_do_harm(tail: bytes, counts: tuple[int, int, int], flags: int) -> None:
    question = dns_message.parse_question(QUERY)
    message = struct.pack("!HHHHHH", 7, flags, 1, *counts) + QUESTION + tail

    try:
        answer = dns_message.parse_answer(question, 7, message)
    except Malformed:
        return

    assert len(answer.addresses) <= sum(counts)
    assert len(dns_message.reply(question, answer, 512)) <= 512


@given(data=st.data())
def test_a_cut_or_bent_answer_never_yields_more_than_it_holds(data: st.DataObject) -> None:
    question = dns_message.parse_question(QUERY)
    whole = bytearray(_answer(7, (A_RECORD + b"\x01\x01\x01\x01") * 5))
    for _ in range(data.draw(st.integers(0, 5))):
        whole[data.draw(st.integers(12, len(whole) - 1))] = data.draw(st.integers(0, 255))
    message = bytes(whole[: data.draw(st.integers(0, len(whole)))])

    try:
        answer = dns_message.parse_answer(question, 7, message)
    except Malformed:
        return

    assert len(answer.addresses) <= 5


def _answer(id_: int, records: bytes, count: int | None = None) -> bytes:
    number = records.count(A_RECORD[2:10]) if count is None else count
    return struct.pack("!HHHHHH", id_, 0x8180, 1, number, 0, 0) + QUESTION + records
