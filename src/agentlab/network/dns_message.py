"""DNS messages as bytes: just enough to ask for another and to judge the answer.  Pure; its input is hostile.

A question is read, judged and written anew, so that nothing else of what a sandbox sent goes on to the host's name
servers.  An answer is walked record by record before it goes back.  Sources: RFC 1035 §4, RFC 6891 §6.1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

NAME_BYTES_MAX = 255
LABEL_BYTES_MAX = 63
RECORDS_MAX = 512
UDP_BYTES_PLAIN = 512  # what an asker without EDNS can take
UDP_BYTES_OFFERED = 1232  # what we ask for: fits every path without fragments

TYPE_A, TYPE_AAAA, TYPE_OPT = 1, 28, 41
CLASS_IN = 1
OK, FORMAT_ERROR, SERVER_FAILURE, NOT_IMPLEMENTED, REFUSED = 0, 1, 2, 4, 5

_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
_QR, _TC, _RD, _RA = 0x8000, 0x0200, 0x0100, 0x0080
_TRANSFERS = frozenset({251, 252})  # IXFR, AXFR: whole zones


class Malformed(ValueError):
    """These bytes are no DNS message that we understand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a sandbox wants to know."""

    id: int
    name: bytes  # encoded, with its labels' lengths and final zero
    type: int
    klass: int
    flags: int
    udp_bytes_max: int  # the largest datagram that the asker takes
    edns: bool
    dnssec: bool

    @property
    def section(self) -> bytes:
        """The question section, as it goes out and must come back."""
        return self.name + struct.pack("!HH", self.type, self.klass)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A name server's answer that fits its question."""

    body: bytes
    truncated: bool
    addresses: tuple[IPv4Address, ...]


def parse_question(message: bytes) -> Question:
    """A standard query with exactly one question.  Malformed otherwise."""
    if len(message) < _HEADER.size:
        raise Malformed("shorter than a header")
    id_, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(message)
    if flags & _QR or flags & 0x7800 or questions != 1 or answers or authorities or additionals > 1:
        raise Malformed("not a plain query")
    end = _plain_name_end(message, _HEADER.size)
    if end + 4 > len(message):
        raise Malformed("the question is cut off")
    type_, klass = struct.unpack_from("!HH", message, end)
    udp_bytes_max, dnssec, edns = UDP_BYTES_PLAIN, False, False
    if additionals:
        edns, udp_bytes_max, dnssec = _parse_edns(message, end + 4)
    if klass != CLASS_IN or type_ in _TRANSFERS or type_ == TYPE_OPT:
        raise Malformed("not a question that is relayed")
    name = message[_HEADER.size : end]
    return Question(
        id=id_,
        name=name,
        type=type_,
        klass=klass,
        flags=flags & (_RD | 0x0010),  # recursion desired, checking disabled
        udp_bytes_max=udp_bytes_max,
        edns=edns,
        dnssec=dnssec,
    )


def ask(question: Question, id_: int) -> bytes:
    """The question as we put it: our own id, our own EDNS if the asker has it, no other byte of the sandbox's."""
    head = _HEADER.pack(id_, question.flags, 1, 0, 0, int(question.edns)) + question.section
    if not question.edns:
        return head
    return head + b"\0" + _RECORD.pack(TYPE_OPT, UDP_BYTES_OFFERED, 0x8000 if question.dnssec else 0, 0)


def parse_answer(question: Question, id_: int, message: bytes) -> Answer:
    """Accept what answers this very question and is well formed to its last record.  Malformed otherwise."""
    if len(message) < _HEADER.size:
        raise Malformed("shorter than a header")
    got, flags, questions, *counts = _HEADER.unpack_from(message)
    if got != id_ or not flags & _QR or questions != 1:
        raise Malformed("not an answer to this query")
    end = _HEADER.size + len(question.section)
    if message[_HEADER.size : end].lower() != question.section.lower():
        raise Malformed("the answer is for another question")
    if sum(counts) > RECORDS_MAX:
        raise Malformed("too many records")
    truncated = bool(flags & _TC)
    addresses: list[IPv4Address] = []
    if not truncated:
        for _ in range(sum(counts)):
            end = _read_record(message, end, addresses)
    return Answer(body=message[2:], truncated=truncated, addresses=tuple(addresses))


def reply(question: Question, answer: Answer, bytes_max: int) -> bytes:
    """The answer under the asker's id; cut down to header and question, marked truncated, where it does not fit."""
    if answer.truncated or len(answer.body) + 2 > bytes_max:
        return refuse(question, OK, truncated=True)
    return struct.pack("!H", question.id) + answer.body


def refuse(question: Question, code: int, *, truncated: bool = False) -> bytes:
    """An answer without records: a response code, or (code OK) that there is nothing of that type."""
    flags = _QR | _RA | question.flags | (_TC if truncated else 0) | code
    return _HEADER.pack(question.id, flags, 1, 0, 0, 0) + question.section


def refuse_malformed(message: bytes) -> bytes | None:
    """What to answer to bytes that could not be read; None if even their id cannot, or they are an answer."""
    if len(message) < _HEADER.size or message[2] & 0x80:
        return None
    code = NOT_IMPLEMENTED if message[2] & 0x78 else FORMAT_ERROR
    return _HEADER.pack(int.from_bytes(message[:2], "big"), _QR | code, 0, 0, 0, 0)


def points_into(addresses: Iterable[IPv4Address], networks: Iterable[IPv4Network]) -> bool:
    """Whether one of the addresses lies in one of the networks."""
    nets = tuple(networks)
    return any(address in network for address in addresses for network in nets)


def _plain_name_end(message: bytes, start: int) -> int:
    """Where a name without compression ends."""
    offset = start
    while True:
        if offset >= len(message):
            raise Malformed("the name is cut off")
        length = message[offset]
        if length > LABEL_BYTES_MAX:
            raise Malformed("a label is too long or compressed")
        offset += 1 + length
        if offset - start > NAME_BYTES_MAX:
            raise Malformed("the name is too long")
        if length == 0:
            return offset


def _name_end(message: bytes, start: int) -> int:
    """Where a name ends in place, be it by a zero or by a pointer backwards; the pointer is not followed."""
    offset = start
    while True:
        if offset >= len(message):
            raise Malformed("a name is cut off")
        length = message[offset]
        if length >= 0xC0:
            if offset + 2 > len(message):
                raise Malformed("a pointer is cut off")
            if ((length & 0x3F) << 8 | message[offset + 1]) >= offset:
                raise Malformed("a pointer does not point backwards")
            return offset + 2
        if length > LABEL_BYTES_MAX:
            raise Malformed("a label is too long")
        offset += 1 + length
        if offset - start > NAME_BYTES_MAX:
            raise Malformed("a name is too long")
        if length == 0:
            return offset


def _parse_edns(message: bytes, offset: int) -> tuple[bool, int, bool]:
    if offset + 1 + _RECORD.size > len(message) or message[offset] != 0:
        raise Malformed("the additional record is not EDNS")
    kind, size, extended, length = _RECORD.unpack_from(message, offset + 1)
    if kind != TYPE_OPT or offset + 1 + _RECORD.size + length > len(message):
        raise Malformed("the additional record is not EDNS")
    return True, max(UDP_BYTES_PLAIN, min(size, UDP_BYTES_OFFERED)), bool(extended & 0x8000)


def _read_record(message: bytes, offset: int, addresses: list[IPv4Address]) -> int:
    offset = _name_end(message, offset)
    if offset + _RECORD.size > len(message):
        raise Malformed("a record is cut off")
    kind, klass, _, length = _RECORD.unpack_from(message, offset)
    offset += _RECORD.size
    if offset + length > len(message):
        raise Malformed("a record is longer than the message")
    if kind == TYPE_A and klass == CLASS_IN:
        if length != 4:
            raise Malformed("an address is not four bytes")
        addresses.append(IPv4Address(message[offset : offset + 4]))
    return offset + int(length)
