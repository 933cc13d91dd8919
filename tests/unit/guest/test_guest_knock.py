"""The knock of a guest that comes over the network: whose turn it is, and how long it may take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab_guest.knock import (
    LINE_BYTES_MAX,
    PROTOCOL_MAX,
    REFUSALS,
    Accepted,
    GuestSide,
    HostSide,
    Knock,
    NotLetIn,
    Refused,
    Welcome,
    agreed,
    line,
)
from agentlab_guest.record import replaced
from agentlab_guest.strict import Malformed

KNOCK = Knock(protocol_min=1, protocol_max=1, version="1", sandbox="sb-abcdefgh", nonce="n", token="t")


def test_a_knock_may_come_in_pieces() -> None:
    side, raw = HostSide(), line(KNOCK)

    found = [side.knock(raw[at : at + 7]) for at in range(0, len(raw), 7)]

    assert found[-1] == KNOCK
    assert set(found[:-1]) == {None}


@pytest.mark.parametrize("change", [{"token": None}, {"credential": "c"}], ids=["neither", "both"])
def test_a_knock_shows_one_of_token_and_credential(change: dict[str, str | None]) -> None:
    with pytest.raises(Malformed, match="one of token and credential"):
        HostSide().knock(line(replaced(KNOCK, **change)))


def test_accepted_before_the_knock_is_malformed() -> None:
    with pytest.raises(Malformed, match="comes first"):
        HostSide().knock(line(Accepted()))


def test_a_guest_that_goes_on_without_an_answer_is_malformed() -> None:
    with pytest.raises(Malformed, match="the daemon speaks first"):
        HostSide().knock(line(KNOCK) + line(Accepted()))


def test_a_second_knock_instead_of_accepted_is_malformed() -> None:
    side = HostSide()
    side.knock(line(KNOCK))

    with pytest.raises(Malformed, match="accepted comes after welcome"):
        side.acceptance(line(KNOCK))


def test_accepted_ends_the_knock() -> None:
    side = HostSide()
    side.knock(line(KNOCK))

    assert (side.acceptance(b'{"is":'), side.acceptance(b'"accepted"}\n')) == (False, True)


@pytest.mark.parametrize("raw", [b"x" * LINE_BYTES_MAX, b"x" * LINE_BYTES_MAX + b"\n"], ids=["endless", "ended"])
def test_a_line_beyond_its_limit_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed, match="LINE_BYTES_MAX"):
        HostSide().knock(raw)


def test_what_follows_a_welcome_belongs_to_the_control_link() -> None:
    side = GuestSide()

    welcome = side.answer(line(Welcome(protocol=1, credential="c")) + b"\xa7aglab")

    assert welcome == Welcome(protocol=1, credential="c")
    assert side.rest == b"\xa7aglab"


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_says_why(code: str) -> None:
    with pytest.raises(NotLetIn, match="because") as refused:
        GuestSide().answer(line(Refused(code=code, message="because")))

    assert refused.value.code == code


def test_a_welcome_in_a_protocol_that_nobody_offered_is_malformed() -> None:
    with pytest.raises(Malformed, match="nobody offered"):
        GuestSide().answer(line(Welcome(protocol=PROTOCOL_MAX + 1)))


def test_the_newest_common_protocol_is_agreed_on() -> None:
    assert agreed(replaced(KNOCK, protocol_max=PROTOCOL_MAX + 3)) == PROTOCOL_MAX
    assert agreed(replaced(KNOCK, protocol_min=PROTOCOL_MAX + 1, protocol_max=PROTOCOL_MAX + 3)) == 0


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_arbitrary_bytes_never_do_more_than_be_malformed(pieces: list[bytes]) -> None:
    side = HostSide()
    for piece in pieces:
        try:
            assert side.knock(piece) is None
        except Malformed:
            return
        assert len(side.rest) < LINE_BYTES_MAX
