"""Frames and order: what is valid goes through unchanged, and nothing but ProtocolError meets anything else."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlab_guest import protocol as p
from agentlab_guest.strict import COUNT_MAX

DIGEST = "0123456789abcdef" * 4
HELLO = p.Hello(protocol_min=1, protocol_max=1, version="0.1", nonce="n", grant="g")
AGAIN = p.Hello(protocol_min=1, protocol_max=1, version="0.1", nonce="n", credential="c")
WELCOME = p.Welcome(protocol=1, output_acked=0, event_acked=0, reported=False, credential="c", data=b"{}")
WELCOME_AGAIN = p.Welcome(protocol=1, output_acked=5, event_acked=2, reported=False)

counts = st.integers(0, COUNT_MAX)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
chunks = st.binary(max_size=300)
MESSAGES: dict[type[p.Message], dict[str, st.SearchStrategy[Any]]] = {
    p.Hello: {"protocol_min": counts, "protocol_max": counts, "version": words, "nonce": words, "grant": words},
    p.Accepted: {},
    p.Output: {"offset": counts, "data": chunks},
    p.Event: {"seq": counts, "at": st.floats(0, 1e11), "phase": words, "detail": words},
    p.BlobWant: {"digest": digests, "offset": counts},
    p.ArtifactOffer: {
        "id": counts,
        "name": words,
        "kind": st.sampled_from(["file", "bundle", "patch"]),
        "bytes": counts,
        "digest": digests,
    },
    p.ArtifactChunk: {"id": counts, "offset": counts, "data": chunks},
    p.Heartbeat: {"phase": words, "output": counts},
    p.ReportMessage: {"data": chunks},
    p.Welcome: {
        "protocol": counts,
        "credential": words,
        "output_acked": counts,
        "event_acked": counts,
        "reported": st.booleans(),
        "stop": st.sampled_from([None, "cancelled", "timed_out"]),
        "data": st.binary(min_size=1, max_size=300),
    },
    p.Refused: {"code": words, "message": words},
    p.OutputAck: {"offset": counts},
    p.EventAck: {"seq": counts},
    p.BlobChunk: {"digest": digests, "offset": counts, "total": counts, "data": chunks},
    p.BlobMissing: {"digest": digests, "reason": words},
    p.ArtifactWant: {"id": counts, "offset": counts},
    p.ArtifactStored: {"id": counts},
    p.ArtifactRefused: {"id": counts, "reason": words},
    p.HeartbeatAck: {},
    p.Stop: {"reason": st.sampled_from(["cancelled", "timed_out"])},
    p.ReportAck: {},
}
messages = st.one_of([st.builds(kind, **values) for kind, values in MESSAGES.items()])


def wire(message: p.Message) -> bytes:
    return b"".join(p.encode(message))


def frame(kind: int, meta: bytes, data: bytes = b"") -> bytes:
    return p.HEADER.pack(kind, len(meta), len(data)) + meta + data


def any_decoder() -> p.Decoder:
    return p.Decoder(p.GUEST_KINDS | p.DAEMON_KINDS)


def daemon(*first: p.Message | bytes) -> p.DaemonSide:
    side = p.DaemonSide()
    for each in first:
        if isinstance(each, bytes):
            side.receive(each)
        else:
            side.receive(wire(each)) if each.FROM_GUEST else side.send(each)
    return side


def test_every_message_has_a_round_trip_test() -> None:
    assert set(MESSAGES) == {*p.GUEST_KINDS.values(), *p.DAEMON_KINDS.values()}


@given(st.lists(messages, max_size=6), st.lists(st.integers(1, 400), min_size=1, max_size=8))
def test_messages_survive_the_wire_however_it_is_cut(sent: list[p.Message], cuts: list[int]) -> None:
    stream, decoder, received, at, turn = b"".join(map(wire, sent)), any_decoder(), [], 0, 0

    while at < len(stream):
        received += decoder.feed(stream[at : at + cuts[turn % len(cuts)]])
        at, turn = at + cuts[turn % len(cuts)], turn + 1

    assert received == sent
    assert decoder.pending == 0


@given(st.binary(max_size=2000))
def test_random_bytes_raise_nothing_but_protocol_errors(noise: bytes) -> None:
    decoder = any_decoder()
    try:
        decoder.feed(noise)
    except p.ProtocolError as error:
        assert error.code in p.REFUSALS  # noqa: PT017


@settings(max_examples=300)
@given(st.lists(messages, min_size=1, max_size=4), st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 3))
def test_mutated_streams_raise_nothing_but_protocol_errors(
    sent: list[p.Message], place: int, value: int, how: int
) -> None:
    stream = bytearray(b"".join(map(wire, sent)))
    place %= len(stream)
    if how == 0:
        stream[place] = value
    elif how == 1:
        del stream[place]
    elif how == 2:
        stream.insert(place, value)
    else:
        stream = stream[place:] + stream[:place]

    for side in (p.DaemonSide(), daemon(HELLO, WELCOME), p.GuestSide(), any_decoder()):
        try:
            side.feed(bytes(stream)) if isinstance(side, p.Decoder) else side.receive(bytes(stream))
        except p.ProtocolError as error:
            assert error.code in p.REFUSALS  # noqa: PT017


BAD_METAS = {
    "not an object": b"[]",
    "not JSON": b"{",
    "not UTF-8": b'{"code":"\xff","message":""}',
    "a lone surrogate": b'{"code":"\\ud800","message":""}',
    "a missing key": b'{"code":""}',
    "an unknown key": b'{"code":"","message":"","more":1}',
    "a key twice": b'{"code":"","code":"","message":""}',
    "a number for a text": b'{"code":1,"message":""}',
    "null for a text": b'{"code":null,"message":""}',
    "a word too long": json.dumps({"code": "x" * 65, "message": ""}).encode(),
    "deep nesting": b'{"code":' + b"[" * 60_000,
    "nothing": b"",
}


@pytest.mark.parametrize("meta", BAD_METAS.values(), ids=BAD_METAS.keys())
def test_a_bad_meta_is_malformed(meta: bytes) -> None:
    with pytest.raises(p.ProtocolError) as caught:
        p.guest_decoder().feed(frame(p.Refused.KIND, meta))

    assert caught.value.code == "malformed"


@pytest.mark.parametrize(
    "number", ["-1", "1.5", "1e3", "true", '"7"', "NaN", "Infinity", "-0.0", str(1 << 63), "9" * 5000, "[1]", "null"]
)
def test_an_offset_that_is_no_count_is_malformed(number: str) -> None:
    with pytest.raises(p.ProtocolError) as caught:
        p.guest_decoder().feed(frame(p.OutputAck.KIND, b'{"offset":' + number.encode() + b"}"))

    assert caught.value.code == "malformed"


@pytest.mark.parametrize(
    "header",
    [
        struct.pack(">BII", p.Output.KIND, p.META_BYTES_MAX + 1, 0),
        struct.pack(">BII", p.Output.KIND, 20, p.CHUNK_BYTES_MAX + 1),
        struct.pack(">BII", p.ReportMessage.KIND, 2, p.DATA_BYTES_MAX + 1),
        struct.pack(">BII", p.Accepted.KIND, 2, 1),
    ],
)
def test_a_frame_beyond_its_limit_is_refused_by_its_header_alone(header: bytes) -> None:
    with pytest.raises(p.ProtocolError) as caught:
        p.daemon_decoder().feed(header)

    assert caught.value.code == "too-large"


@pytest.mark.parametrize("kind", [0, 10, 128, 141, 255, p.Welcome.KIND])
def test_a_daemon_refuses_kinds_that_guests_do_not_send(kind: int) -> None:
    with pytest.raises(p.ProtocolError) as caught:
        p.daemon_decoder().feed(frame(kind, b"{}"))

    assert caught.value.code == "malformed"


def test_a_hello_needs_exactly_one_of_grant_and_credential() -> None:
    meta: dict[str, Any] = {"protocol_min": 1, "protocol_max": 1, "version": "", "nonce": ""}
    for wrong in ({}, {"grant": "g", "credential": "c"}, {"grant": None}):
        with pytest.raises(p.ProtocolError):
            p.daemon_decoder().feed(frame(p.Hello.KIND, json.dumps(meta | wrong).encode()))


def test_the_sender_of_an_oversize_message_is_told_so() -> None:
    with pytest.raises(ValueError, match="limit"):
        p.encode(p.Output(offset=0, data=bytes(p.CHUNK_BYTES_MAX + 1)))


def test_the_protocol_is_the_newest_that_both_speak() -> None:
    assert p.agreed_protocol(HELLO) == 1
    with pytest.raises(p.ProtocolError) as caught:
        p.agreed_protocol(p.Hello(protocol_min=2, protocol_max=9, version="9", nonce="n", grant="g"))
    assert caught.value.code == "protocol-version"


OFFER = p.ArtifactOffer(id=1, name="a", kind="file", bytes=10, digest=DIGEST)
WANT = p.ArtifactWant(id=1, offset=0)
OUT_OF_ORDER: dict[str, list[p.Message]] = {
    "heartbeat before hello": [p.Heartbeat(phase="", output=0)],
    "two hellos": [HELLO, HELLO],
    "accepted before welcome": [HELLO, p.Accepted()],
    "output before accepted": [HELLO, WELCOME, p.Output(offset=0, data=b"x")],
    "accepted twice": [HELLO, WELCOME, p.Accepted(), p.Accepted()],
    "accepted after a credential": [AGAIN, WELCOME_AGAIN, p.Accepted()],
    "output with a gap": [AGAIN, WELCOME_AGAIN, p.Output(offset=6, data=b"x")],
    "output repeated": [AGAIN, WELCOME_AGAIN, p.Output(offset=0, data=b"x")],
    "empty output": [AGAIN, WELCOME_AGAIN, p.Output(offset=5, data=b"")],
    "event with a gap": [AGAIN, WELCOME_AGAIN, p.Event(seq=4, at=1, phase="run", detail="")],
    "event repeated": [AGAIN, WELCOME_AGAIN, p.Event(seq=2, at=1, phase="run", detail="")],
    "two blobs at a time": [
        AGAIN,
        WELCOME_AGAIN,
        p.BlobWant(digest=DIGEST, offset=0),
        p.BlobWant(digest=DIGEST, offset=0),
    ],
    "chunk without want": [AGAIN, WELCOME_AGAIN, OFFER, p.ArtifactChunk(id=1, offset=0, data=b"x")],
    "chunk without offer": [AGAIN, WELCOME_AGAIN, p.ArtifactChunk(id=1, offset=0, data=b"x")],
    "chunk at a wrong offset": [AGAIN, WELCOME_AGAIN, OFFER, WANT, p.ArtifactChunk(id=1, offset=1, data=b"x")],
    "more than offered": [AGAIN, WELCOME_AGAIN, OFFER, WANT, p.ArtifactChunk(id=1, offset=0, data=bytes(11))],
    "empty chunk": [AGAIN, WELCOME_AGAIN, OFFER, WANT, p.ArtifactChunk(id=1, offset=0, data=b"")],
    "the same offer twice": [AGAIN, WELCOME_AGAIN, OFFER, OFFER],
    "report with an open offer": [AGAIN, WELCOME_AGAIN, OFFER, p.ReportMessage(data=b"{}")],
    "two reports": [AGAIN, WELCOME_AGAIN, p.ReportMessage(data=b"{}"), p.ReportMessage(data=b"{}")],
    "output after the report": [AGAIN, WELCOME_AGAIN, p.ReportMessage(data=b"{}"), p.Output(offset=5, data=b"x")],
    "chunk after stored": [
        *(AGAIN, WELCOME_AGAIN, OFFER, WANT, p.ArtifactStored(id=1)),
        p.ArtifactChunk(id=1, offset=0, data=b"x"),
    ],
}


@pytest.mark.parametrize("steps", OUT_OF_ORDER.values(), ids=OUT_OF_ORDER.keys())
def test_a_message_out_of_order_is_refused(steps: list[p.Message]) -> None:
    side = daemon(*steps[:-1])

    with pytest.raises(p.ProtocolError) as caught:
        side.receive(wire(steps[-1]))

    assert caught.value.code == "out-of-order"


def test_messages_before_the_fault_are_not_lost() -> None:
    side = daemon(AGAIN, WELCOME_AGAIN)

    with pytest.raises(p.ProtocolError) as caught:
        side.receive(wire(p.Output(offset=5, data=b"x")) + wire(p.Output(offset=9, data=b"y")))

    assert caught.value.before == [p.Output(offset=5, data=b"x")]


def test_more_open_offers_than_the_limit_are_refused() -> None:
    side = daemon(AGAIN, WELCOME_AGAIN)
    for number in range(1, p.ARTIFACT_OFFERS_OPEN_MAX + 1):
        side.receive(wire(p.ArtifactOffer(id=number, name="a", kind="file", bytes=1, digest=DIGEST)))

    with pytest.raises(p.ProtocolError):
        side.receive(wire(p.ArtifactOffer(id=99, name="a", kind="file", bytes=1, digest=DIGEST)))


def test_output_beyond_its_limit_is_too_large() -> None:
    side = daemon(AGAIN, p.Welcome(protocol=1, output_acked=p.OUTPUT_BYTES_MAX, event_acked=0, reported=False))

    with pytest.raises(p.ProtocolError) as caught:
        side.receive(wire(p.Output(offset=p.OUTPUT_BYTES_MAX, data=b"x")))

    assert caught.value.code == "too-large"


def test_chunks_that_were_under_way_when_their_artifact_was_refused_are_swallowed() -> None:
    side = daemon(AGAIN, WELCOME_AGAIN, OFFER, WANT, wire(p.ArtifactChunk(id=1, offset=0, data=b"abc")))
    side.send(p.ArtifactRefused(id=1, reason="full"))

    assert side.receive(wire(p.ArtifactChunk(id=1, offset=3, data=b"def"))) == []
    assert side.receive(wire(p.ReportMessage(data=b"{}"))) == [p.ReportMessage(data=b"{}")]


@pytest.mark.parametrize(
    "wrong",
    [
        p.OutputAck(offset=6),
        p.EventAck(seq=3),
        p.HeartbeatAck(),
        p.ReportAck(),
        p.ArtifactWant(id=1, offset=0),
        p.ArtifactStored(id=1),
        p.BlobChunk(digest=DIGEST, offset=0, total=1, data=b"x"),
        WELCOME_AGAIN,
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_guest_refuses_answers_to_what_it_did_not_say(wrong: p.Message) -> None:
    side = p.GuestSide()
    side.send(AGAIN)
    side.receive(wire(WELCOME_AGAIN))

    with pytest.raises(p.ProtocolError):
        side.receive(wire(wrong))


@pytest.mark.parametrize("offset", [0, 3])
def test_a_blob_arrives_from_where_it_was_wanted(offset: int) -> None:
    side = p.GuestSide()
    side.send(AGAIN)
    side.receive(wire(WELCOME_AGAIN))
    side.send(p.BlobWant(digest=DIGEST, offset=offset))

    side.receive(wire(p.BlobChunk(digest=DIGEST, offset=offset, total=9, data=bytes(9 - offset))))

    with pytest.raises(p.ProtocolError):
        side.receive(wire(p.BlobChunk(digest=DIGEST, offset=9, total=9, data=b"")))


def test_our_own_mistakes_are_no_protocol_errors() -> None:
    with pytest.raises(ValueError, match="welcome comes first"):
        daemon(HELLO).send(p.OutputAck(offset=0))


def test_decoding_keeps_memory_bounded_and_is_not_quadratic() -> None:
    stream = wire(p.Output(offset=0, data=bytes(p.CHUNK_BYTES_MAX)))
    decoder = p.daemon_decoder()
    tracemalloc.start()
    for at in range(0, len(stream) - 1, 64):
        decoder.feed(stream[at : min(at + 64, len(stream) - 1)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert decoder.pending == len(stream) - 1
    assert peak < 4 * p.CHUNK_BYTES_MAX


def test_bulk_data_is_decoded_at_memory_speed() -> None:
    stream = wire(p.Output(offset=0, data=bytes(p.CHUNK_BYTES_MAX)))
    pieces = [stream[at : at + (256 << 10)] for at in range(0, len(stream), 256 << 10)]
    decoder = p.daemon_decoder()

    started = time.process_time()
    for _ in range(128):
        for piece in pieces:
            decoder.feed(piece)
    took = time.process_time() - started

    print(f"decode: {128 / took:.0f} MiB/s")
    assert took < 128 / 400, "slower than 400 MiB/s; 2 to 4 GiB/s are usual"


def test_a_bootstrap_survives_the_wire_and_keeps_its_secrets_out_of_its_repr() -> None:
    bootstrap = a_bootstrap()

    assert p.parse_bootstrap(bootstrap.encode()) == bootstrap
    assert "hunter2" not in repr(bootstrap)


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "other"},
        {"agent": {"name": "x", "argv": [], "prompt": "file"}},
        {"agent": {"name": "x", "argv": ["a\0"], "prompt": "file"}},
        {"repo": {"url": "https://x", "bundle": DIGEST, "bundle_bytes": 1, "ref": None}},
        {"work_dir": "work"},
        {"work_dir": "/"},
        {"env": {"A=B": "c"}},
        {"timeout_s": -1},
        {"count_max": True},
        {"more": 1},
    ],
    ids=str,
)
def test_a_wrong_bootstrap_is_malformed(change: dict[str, Any]) -> None:
    raw = json.dumps(json.loads(a_bootstrap().encode()) | change).encode()

    with pytest.raises(p.Malformed):
        p.parse_bootstrap(raw)


def test_a_report_survives_the_wire() -> None:
    report = p.Report(
        outcome="failed",
        exit_status=None,
        summary="s",
        skipped=(p.Skipped(name="a", reason="b"),),
        failure=p.Failure(phase="fetch", cause="c", remedy="r"),
    )

    assert p.parse_report(report.encode()) == report


@given(st.binary(max_size=200))
def test_parsing_a_report_raises_nothing_but_malformed(noise: bytes) -> None:
    try:
        p.parse_report(noise)
    except p.Malformed:
        pass


def a_bootstrap() -> p.Bootstrap:
    return p.Bootstrap(
        job="job-x",
        mode="run",
        agent=p.AgentCommand(name="shell", argv=("bash", "-eu", "{task_file}"), prompt="file"),
        task="true",
        repo=p.RepoSpec(),
        env={"A": "b"},
        redact=("hunter2",),
        user="root",
        work_dir="/work",
        branch="agentlab/job-x",
        git_name="n",
        git_email="e",
        timeout_s=60,
        stop_grace_s=1,
        collect_s_max=60,
        heartbeat_s=5,
        globs=(),
        file_bytes_max=0,
        total_bytes_max=0,
        count_max=100,
    )
