"""The control link's protocol: whatever is cut, stale or forged, both ends agree or say so."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlab_guest import mux
from agentlab_guest.mux import ANSWER_MAGIC, HEADER, MAGIC, GuestEnd, HostEnd, MuxError

TOKEN, OTHER = b"t" * 32, b"o" * 32
KINDS = range(1, 10)


def joined(token: bytes = TOKEN) -> tuple[HostEnd, GuestEnd]:
    """Two ends that have met."""
    host, guest = HostEnd(token), GuestEnd()
    host.receive(answer_of(guest, host.preamble()))
    return host, guest


def answer_of(guest: GuestEnd, raw: bytes) -> bytes:
    """What the guest sends before anything else when these bytes come."""
    return b"".join(payload for kind, _, payload in guest.receive(raw) if kind in (mux.RESET, mux.LOST))


def frame(kind: int, channel: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(kind, channel, len(payload)) + payload


def opened() -> tuple[HostEnd, GuestEnd]:
    """Two ends with channel 2 open."""
    host, guest = joined()
    _, raw = host.open(b"{}")
    guest.receive(raw)
    return host, guest


noise = st.binary(max_size=300)
frames = st.builds(frame, st.sampled_from(KINDS), st.integers(0, 6), st.binary(max_size=40))
streams = st.lists(st.one_of(noise, frames, st.just(HostEnd(OTHER).preamble())), max_size=8).map(b"".join)


def test_both_ends_meet_on_the_first_preamble() -> None:
    host, guest = HostEnd(TOKEN), GuestEnd()

    assert host.receive(answer_of(guest, host.preamble())) == [(mux.READY, 0, b"")]
    assert host.protocol == mux.PROTOCOL_MAX


@given(noise, noise)
def test_what_an_earlier_connection_left_is_thrown_away(to_guest: bytes, to_host: bytes) -> None:
    host, guest = HostEnd(TOKEN), GuestEnd()

    guest.receive(to_guest)

    assert host.receive(to_host + answer_of(guest, host.preamble() + host.flood()))[0][0] == mux.READY


def test_the_answer_to_another_daemon_is_not_ours() -> None:
    host, guest, former = HostEnd(TOKEN), GuestEnd(), HostEnd(OTHER)
    stale = answer_of(guest, former.preamble())

    assert host.receive(stale) == []
    assert host.receive(answer_of(guest, host.preamble())) == [(mux.READY, 0, b"")]


def test_a_new_daemon_is_heard_in_the_midst_of_a_connection() -> None:
    _, guest = opened()
    new = HostEnd(OTHER)

    assert new.receive(answer_of(guest, new.preamble())) == [(mux.READY, 0, b"")]
    assert guest.is_open(2) is False


def test_a_flood_is_heard_inside_a_frame_that_was_never_finished() -> None:
    _, guest = opened()
    new = HostEnd(OTHER)
    guest.receive(HEADER.pack(mux.DATA, 2, mux.DATA_BYTES_MAX["host"]) + b"half")

    assert guest.receive(new.preamble()) == []
    assert new.receive(answer_of(guest, new.flood())) == [(mux.READY, 0, b"")]


def test_a_preamble_that_was_cut_short_does_not_hide_the_next() -> None:
    host, guest = HostEnd(TOKEN), GuestEnd()

    guest.receive(HostEnd(OTHER).preamble()[:20])

    assert host.receive(answer_of(guest, host.preamble())) == [(mux.READY, 0, b"")]


def test_the_same_preamble_again_changes_nothing() -> None:
    host, guest = opened()

    assert guest.receive(host.preamble() + frame(mux.DATA, 2, b"x")) == [(mux.DATA, 2, b"x")]


def test_a_daemon_that_is_too_new_is_refused_with_what_the_guest_speaks() -> None:
    host, guest = HostEnd(TOKEN), GuestEnd()
    preamble = bytearray(host.preamble())
    preamble[len(MAGIC) : len(MAGIC) + 2] = bytes((7, 9))

    answer = answer_of(guest, bytes(preamble))

    with pytest.raises(MuxError, match="the guest speaks control protocols 1 to 1"):
        host.receive(answer)


@given(
    st.lists(st.tuples(st.sampled_from(["host", "guest"]), st.binary(min_size=1, max_size=400)), max_size=12), st.data()
)
def test_data_survive_the_wire_however_it_is_cut(sent: list[tuple[str, bytes]], data: st.DataObject) -> None:
    host, guest = opened()
    ends = {"host": host, "guest": guest}
    wires = {"host": b"", "guest": b""}
    expected: dict[str, list[bytes]] = {"host": [], "guest": []}
    for who, payload in sent:
        wires[who] += ends[who].data_head(mux.DATA, 2, len(payload)) + payload
        expected[who].append(payload)

    got: dict[str, list[bytes]] = {who: [] for who in ends}
    for who, other in (("host", guest), ("guest", host)):
        for piece in cut(wires[who], data):
            got[who] += [payload for _, _, payload in other.receive(piece)]

    assert got == expected
    assert host.pending == guest.pending == 0


def cut(stream: bytes, data: st.DataObject) -> list[bytes]:
    at = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    return [stream[a:b] for a, b in zip([0, *at], [*at, len(stream)], strict=True)]


@settings(max_examples=300)
@given(streams)
def test_nothing_that_a_guest_sends_raises_anything_but_a_mux_error(stream: bytes) -> None:
    host, _ = opened()
    try:
        host.receive(stream)
    except MuxError as error:
        assert str(error)  # noqa: PT017


@settings(max_examples=300)
@given(streams)
def test_nothing_that_arrives_makes_a_guest_raise_or_deaf(stream: bytes) -> None:
    _, guest = opened()
    new = HostEnd(b"n" * 32)

    guest.receive(stream)

    assert new.receive(answer_of(guest, new.flood())) == [(mux.READY, 0, b"")]


@pytest.mark.parametrize(
    "forged",
    [
        frame(mux.DATA, 4, b"x"),  # a channel that is not open
        frame(mux.DATA, 2),  # nothing
        frame(mux.END, 2, b"x"),
        frame(mux.END, 2) + frame(mux.DATA, 2, b"x"),
        frame(mux.END, 2) + frame(mux.END, 2),
        frame(mux.CLOSE, 2) + frame(mux.DATA, 2, b"x"),
        frame(mux.CREDIT, 2, (1).to_bytes(4, "big")),  # more than was used
        frame(mux.CREDIT, 2, b"x"),
        frame(mux.MESSAGE, 4, b"{}"),  # only the host opens even ones
        frame(mux.MESSAGE, 3, b"{}") + frame(mux.MESSAGE, 1, b"{}"),  # numbers rise
        b"".join(frame(mux.MESSAGE, 1 + 2 * number, b"{}") for number in range(9)),  # CHANNELS_MAX
        frame(mux.PART, 2),
        b"\x00",
        b"\xa7",
        frame(99, 2),
        HEADER.pack(mux.DATA, 2, 1 << 30),
    ],
)
def test_a_guest_that_breaks_the_rules_is_cut_off(forged: bytes) -> None:
    host, _ = opened()

    with pytest.raises(MuxError):
        host.receive(forged)


def test_more_data_than_the_window_is_refused() -> None:
    host, _ = opened()
    full = frame(mux.DATA, 2, bytes(mux.DATA_BYTES_MAX["guest"]))

    with pytest.raises(MuxError, match="are allowed"):
        host.receive(full * 9)


def test_credit_comes_back_as_data_are_used() -> None:
    host, guest = opened()
    window, size = mux.WINDOW_BYTES["guest"], mux.DATA_BYTES_MAX["guest"]
    host.receive(b"".join(guest.data_head(mux.DATA, 2, size) + bytes(size) for _ in range(3)))

    assert guest.credit(2) == window - 3 * size
    assert host.consumed(2, size) + host.consumed(2, size) == b""
    assert guest.receive(host.consumed(2, size))[0][0] == mux.CREDIT
    assert guest.credit(2) == window


def test_a_long_message_comes_in_parts_and_whole() -> None:
    host, guest = joined()
    raw = b"x" * (1 << 20)

    number, sent = host.open(raw)

    assert guest.receive(sent) == [(mux.MESSAGE, number, raw)]


def test_a_message_beyond_its_limit_is_refused_at_both_ends() -> None:
    host, guest = opened()
    part = frame(mux.PART, 2, bytes(mux.DATA_BYTES_MAX["guest"]))

    with pytest.raises(ValueError):
        guest.message(2, bytes(mux.MESSAGE_BYTES_MAX["guest"] + 1))
    with pytest.raises(MuxError, match="too long"):
        host.receive(part * 2)


def test_a_channel_ends_when_both_have_closed_it_and_late_data_are_dropped() -> None:
    host, guest = opened()
    late = guest.data_head(mux.DATA, 2, 4) + b"late"

    closing = host.close(2)

    assert host.receive(late) == []
    assert guest.receive(closing) == [(mux.CLOSE, 2, b"")]
    assert host.receive(guest.close(2)) == [(mux.CLOSE, 2, b"")]
    assert not host.is_known(2)
    assert not guest.is_known(2)


def test_a_guest_that_never_answers_is_given_up() -> None:
    host, chunk = HostEnd(TOKEN), bytes(1 << 20)

    with pytest.raises(MuxError, match="without answering"):
        [host.receive(chunk) for _ in range(70)]


def test_memory_stays_flat_while_hunting() -> None:
    host, guest, chunk = HostEnd(TOKEN), GuestEnd(), (ANSWER_MAGIC + MAGIC[:4]) * 1000
    tracemalloc.start()

    [(host.receive(chunk), guest.receive(chunk)) for _ in range(200)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1 << 20
    assert host.pending + guest.pending < 100
