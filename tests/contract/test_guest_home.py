"""Guests that come over the network: the real resident program, a real listener, and strangers at the door."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentlab.backends.interface import Command, Unavailable
from agentlab.backends.link import crowd, doorstep
from agentlab.backends.link.certificate import CERTIFICATE, KEY, provide
from agentlab.backends.link.channels import GuestStream
from agentlab.backends.link.control import Control, Relay
from agentlab.base.process import run
from agentlab.model.ids import SandboxId
from agentlab.testing.guest_home import GuestHome, nobody
from agentlab.testing.guest_peer import GuestPeer
from agentlab.testing.guest_world import GuestWorld
from agentlab.testing.resident_process import SANDBOX, DialledProcess, begun_again, dialled_process
from agentlab_guest.invitation import Invitation, parse
from agentlab_guest.knock import LINE_BYTES_MAX, Accepted, Knock, line
from agentlab_guest.mux import MAGIC

pytestmark = pytest.mark.anyio

SOON_S = 10.0
OTHER = SandboxId("sb-stranger")
TLS_ALERT = b"\x15"


@pytest.fixture
async def resident(tmp_path: Path) -> AsyncIterator[DialledProcess]:
    async with dialled_process(tmp_path) as resident:
        yield resident


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[GuestHome]:
    home = GuestHome(folder=tmp_path)
    await home.begin()
    yield home
    await home.end()


class Stranger:
    """Somebody who connects; with TLS, and past that with whatever a test wants to say."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def come(cls, home: GuestHome, *, tls: bool = True) -> Stranger:
        context = None
        if tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return cls(*await asyncio.open_connection("127.0.0.1", home.port, ssl=context))

    async def say(self, raw: bytes) -> bytes:
        """The line that is answered, empty if the connection ends."""
        try:
            self.writer.write(raw)
            async with asyncio.timeout(SOON_S):
                return await self.reader.readline()
        except ConnectionError:
            return b""

    async def code(self, raw: bytes) -> str:
        """What is answered, in a word."""
        answer = await self.say(raw)
        if not answer:
            return "ended"
        found = json.loads(answer)
        return str(found.get("code", found["is"]))

    async def answered(self) -> bytes:
        """All that comes until the other end closes: the beginning of it."""
        try:
            async with asyncio.timeout(SOON_S):
                return (await self.reader.read())[:1]
        except ConnectionError:
            return b""

    async def ended(self) -> bool:
        """Whether the other end closes, soon."""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(SOON_S):
                return await self.reader.read() == b""
        return True

    def leave(self) -> None:
        self.writer.transport.abort()


def knock(invitation: Invitation, **changes: Any) -> bytes:
    values = {"protocol_min": 1, "protocol_max": 1, "version": "1", "sandbox": invitation.sandbox, "nonce": "stranger"}
    values |= {"token": invitation.token} | changes
    return line(Knock(**values))


async def invited(home: GuestHome, sandbox: SandboxId = SANDBOX) -> Invitation:
    return parse(await home.invite(sandbox))


async def echo(control: Control, text: str = "hello") -> str:
    found = bytearray()
    async with asyncio.timeout(SOON_S), control.running(Command(argv=("echo", text))) as execution:
        async for _, data in execution.output():
            found += data
    return found.decode().strip()


# Coming home


async def test_a_guest_comes_back_to_the_next_daemon_with_its_credential_and_without_its_token(
    resident: DialledProcess,
) -> None:
    first = await resident.connect()
    assert await echo(first) == "hello"

    second = await resident.connect()

    assert first.closed
    assert await echo(second) == "hello"
    assert resident.home.replayed == []


async def test_a_guest_program_that_is_started_again_goes_on_with_what_it_kept(tmp_path: Path) -> None:
    async with dialled_process(tmp_path) as resident:
        control = await resident.connect()
        os.kill(resident.pid, 9)
        await control.wait_closed()
        async with begun_again(tmp_path):
            assert await echo(await resident.home.control(SANDBOX)) == "hello"

        assert resident.home.replayed == []
        assert (tmp_path / "run/link.json").stat().st_mode & 0o777 == 0o600


async def test_a_guest_that_has_lost_what_it_kept_is_refused_and_told_of(tmp_path: Path) -> None:
    async with dialled_process(tmp_path) as resident:
        control = await resident.connect()
        os.kill(resident.pid, 9)
        await control.wait_closed()
        (tmp_path / "run/link.json").unlink()
        async with begun_again(tmp_path):
            await until(lambda: resident.home.replayed == [SANDBOX])

            with pytest.raises(Unavailable, match="the token was redeemed before"):
                await resident.home.control(SANDBOX, 0.1)
            assert "refused (spent)" in (tmp_path / "complaints").read_text()


async def test_a_launched_program_and_its_words_outlive_the_daemon(resident: DialledProcess) -> None:
    control = await resident.connect()
    await control.launch(Command(argv=("/bin/sh", "-c", "cat; echo; exec sleep 300")), b"a grant")
    await until(lambda: (resident.link.parent / "console/log").exists())

    control = await resident.connect()

    assert await control.tail() == "a grant\n"


async def test_a_job_loses_and_repeats_nothing_while_daemons_and_connections_come_and_go(tmp_path: Path) -> None:
    lines = 60_000
    world = GuestWorld(folder(tmp_path / "w"))
    # A line's number is its content: what is lost or repeated is seen.
    task = f"for n in $(seq {lines}); do echo $n; [ $((n % 6000)) -ne 0 ] || sleep 0.3; done; echo done > made.txt"
    with world.peer(task) as peer:
        async with dialled_process(folder(tmp_path / "r")) as resident, proxied(resident, 400_000) as cuts:
            await resident.connect(relay_to(peer))
            process = world.start(SimpleNamespace(path=resident.link, grant=peer.grant))  # type: ignore[arg-type]
            for _ in range(3):
                await asyncio.sleep(0.5)
                await resident.home.begin(relay_to(peer))
            await asyncio.to_thread(world.finish, peer, process)
    world.close()

    assert bytes(peer.output) == b"".join(b"%d\n" % number for number in range(1, lines + 1))
    assert peer.artifacts.keys() >= {"result.bundle", "result.patch"}
    assert peer.connections >= 3
    assert len(cuts) >= 1


async def test_a_guest_that_comes_again_replaces_its_former_connection(home: GuestHome) -> None:
    invitation = await invited(home)
    first = await Stranger.come(home)
    credential = json.loads(await first.say(knock(invitation)))["credential"]
    first.writer.write(line(Accepted()))
    assert (await first.reader.readexactly(8)) == MAGIC

    second = await Stranger.come(home)
    welcome = await second.say(knock(invitation, token=None, credential=credential))

    assert json.loads(welcome) == {"is": "welcome", "protocol": 1}
    assert (await second.reader.readexactly(8)) == MAGIC


async def test_nothing_is_known_of_who_was_not_invited(home: GuestHome) -> None:
    with pytest.raises(Unavailable, match="has not been invited"):
        await home.control(OTHER, 0.1)


async def test_who_does_not_come_is_waited_for_no_longer_than_asked(home: GuestHome) -> None:
    await home.invite(SANDBOX)

    with pytest.raises(Unavailable, match=r"within 0\.1 s: it has not called home"):
        await home.control(SANDBOX, 0.1)


async def test_who_is_forgotten_leaves_and_does_not_come_back(resident: DialledProcess, tmp_path: Path) -> None:
    control = await resident.connect()

    await resident.home.guests.forget(SANDBOX)

    async with asyncio.timeout(SOON_S):
        await control.wait_closed()
    await until(lambda: "refused (unknown)" in (tmp_path / "complaints").read_text())
    assert resident.home.guests.linked(SANDBOX) is None


async def test_a_guest_tells_nothing_to_a_daemon_with_another_certificate(tmp_path: Path) -> None:
    async with dialled_process(tmp_path) as resident:
        impostor = GuestHome(folder=folder(tmp_path / "impostor"))
        impostor._port = resident.home.port
        await impostor.begin()
        await until(lambda: "its certificate is not the one" in (tmp_path / "complaints").read_text())
        assert impostor.guests.linked(SANDBOX) is None
        await impostor.end()


# Tokens in the wrong hands


async def test_a_token_that_is_shown_again_is_refused_and_told_of_and_its_guest_is_not_disturbed(
    resident: DialledProcess, tmp_path: Path
) -> None:
    control = await resident.connect()
    stolen = parse((tmp_path / "serial").read_bytes().strip())

    stranger = await Stranger.come(resident.home)

    assert await stranger.code(knock(stolen)) == "spent"
    assert await stranger.ended()
    assert resident.home.replayed == [SANDBOX]
    assert await echo(control) == "hello"


async def test_a_guest_whose_welcome_was_lost_asks_again_and_another_does_not(home: GuestHome) -> None:
    invitation = await invited(home)

    assert await (await Stranger.come(home)).code(knock(invitation)) == "welcome"
    assert await (await Stranger.come(home)).code(knock(invitation)) == "welcome"
    assert home.replayed == []
    assert await (await Stranger.come(home)).code(knock(invitation, nonce="another")) == "spent"
    assert home.replayed == [SANDBOX]


async def test_of_many_that_redeem_at_the_same_moment_one_gets_in(home: GuestHome) -> None:
    invitation = await invited(home)
    strangers = [await Stranger.come(home) for _ in range(10)]

    codes = await asyncio.gather(
        *[each.code(knock(invitation, nonce=str(number))) for number, each in enumerate(strangers)]
    )

    assert sorted(codes) == ["spent"] * 9 + ["welcome"]
    assert set(home.replayed) == {SANDBOX}


async def test_a_replay_is_told_of_once_and_again_after_a_new_invitation(home: GuestHome) -> None:
    for told in (1, 2):
        invitation = await invited(home)
        await (await Stranger.come(home)).code(knock(invitation))
        for _ in range(3):
            assert await (await Stranger.come(home)).code(knock(invitation, nonce="another")) == "spent"
        assert len(home.replayed) == told


async def test_a_wrong_token_and_a_foreign_sandbox_are_refused_alike(home: GuestHome) -> None:
    invitation = await invited(home)

    wrong = await (await Stranger.come(home)).say(knock(invitation, token="0" * 32))
    foreign = await (await Stranger.come(home)).say(knock(invitation, sandbox=OTHER))
    path = await (await Stranger.come(home)).say(knock(invitation, sandbox="../../etc"))

    assert wrong == foreign == path
    assert json.loads(wrong)["code"] == "unknown"
    assert home.replayed == []


async def test_a_guest_of_another_time_is_told_so(home: GuestHome) -> None:
    invitation = await invited(home)

    stranger = await Stranger.come(home)

    assert await stranger.code(knock(invitation, protocol_min=9, protocol_max=9)) == "version"


# Strangers at the door


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 100_000,
        b"x" * LINE_BYTES_MAX,
        b"{}\n",
        b'{"is":"accepted"}\n',
        b'{"is":"knock"}\n',
        b"[" * 900 + b"\n",
        MAGIC * 200,
    ],
    ids=range(8),
)
async def test_nonsense_ends_the_connection_unanswered(home: GuestHome, noise: bytes) -> None:
    stranger = await Stranger.come(home)

    assert await stranger.say(noise) == b""


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\0" * 70_000], ids=range(2))
async def test_who_does_not_speak_tls_is_sent_away(home: GuestHome, noise: bytes) -> None:
    stranger = await Stranger.come(home, tls=False)
    stranger.writer.write(noise)

    assert await stranger.answered() in (b"", TLS_ALERT)


async def test_old_tls_is_not_spoken(home: GuestHome) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", home.port, ssl=context)


async def test_who_goes_on_talking_out_of_turn_is_cut_off(home: GuestHome) -> None:
    invitation = await invited(home)
    stranger = await Stranger.come(home)
    assert await stranger.code(knock(invitation)) == "welcome"

    for _ in range(100):
        stranger.writer.write(b" " * doorstep.UNREAD_BYTES_MAX)

    assert await stranger.ended()


async def test_who_says_nothing_is_sent_away_in_time(home: GuestHome) -> None:
    await home.begin(enter_s_max=0.5)
    strangers = [await Stranger.come(home), await Stranger.come(home, tls=False)]

    assert [await each.ended() for each in strangers] == [True, True]


async def test_a_crowd_that_says_nothing_does_not_keep_a_guest_out(tmp_path: Path) -> None:
    async with dialled_process(tmp_path) as resident:
        await resident.home.begin()
        slow = [await Stranger.come(resident.home, tls=False) for _ in range(3 * crowd.WAITING_PER_ADDRESS_MAX)]
        dripping = asyncio.create_task(drip(slow))
        began = asyncio.get_running_loop().time()

        control = await resident.home.control(SANDBOX)

        assert asyncio.get_running_loop().time() - began < SOON_S
        assert await echo(control) == "hello"
        dripping.cancel()
        for each in slow:
            each.leave()


async def test_what_strangers_cost_is_gone_when_they_are(home: GuestHome) -> None:
    assert await (await Stranger.come(home)).say(b"\n") == b""  # an event loop opens files of its own at its first
    files = open_files()
    silent = []
    for number in range(4 * crowd.WAITING_PER_ADDRESS_MAX):
        stranger = await Stranger.come(home, tls=False)
        stranger.writer.write(b"\x16\x03\x01")
        if number % 2:
            stranger.leave()
        else:
            silent.append(stranger)
    await until(lambda: open_files() <= files + len(silent) + crowd.WAITING_PER_ADDRESS_MAX)

    for each in silent:
        each.leave()

    await until(lambda: open_files() <= files)


# The certificate


async def test_the_certificate_is_made_once_and_its_key_is_the_daemons_alone(tmp_path: Path) -> None:
    first = await provide(tmp_path / "link", "abc")
    second = await provide(tmp_path / "link", "abc")

    assert first == second
    assert len(first.fingerprint) == 43
    assert (tmp_path / "link" / KEY).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "link").stat().st_mode & 0o777 == 0o700
    assert [each.name for each in tmp_path.iterdir()] == ["link"]
    shown = await run(
        ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", str(tmp_path / "link" / CERTIFICATE)]
    )
    digest = bytes.fromhex(shown.out.decode().partition("=")[2].strip().replace(":", ""))
    assert base64.urlsafe_b64encode(digest).decode().rstrip("=") == first.fingerprint


async def test_a_certificate_whose_making_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    folder(tmp_path / ".link.new").joinpath(KEY).write_text("half")

    assert (await provide(tmp_path / "link", "abc")).context()


async def test_a_certificate_that_was_harmed_is_not_replaced_in_silence(tmp_path: Path) -> None:
    made = await provide(tmp_path / "link", "abc")
    shutil.copy(tmp_path / "link" / CERTIFICATE, tmp_path / "link" / KEY)

    with pytest.raises(Unavailable, match="cannot be used"):
        made.context()
    (tmp_path / "link" / CERTIFICATE).write_text("nonsense")
    with pytest.raises(Unavailable, match="cannot be used"):
        await provide(tmp_path / "link", "abc")


async def test_an_address_that_is_taken_says_so(home: GuestHome) -> None:
    second = GuestHome(folder=home.folder)
    second._port = home.port

    with pytest.raises(Unavailable, match="cannot be listened for"):
        await second.begin()


# Below


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not holds():  # noqa: ASYNC110  # what is waited for happens in other processes
            await asyncio.sleep(0.01)


async def drip(strangers: list[Stranger]) -> None:
    while True:
        for each in strangers:
            each.writer.write(b"\x16")
        await asyncio.sleep(0.2)


def relay_to(peer: GuestPeer) -> Relay:
    """What serves a job's guest program, over a socket of its own."""

    async def relay(stream: GuestStream) -> None:
        reader, writer = await asyncio.open_unix_connection(str(peer.path))

        async def upward() -> None:
            while data := await stream.read():
                writer.write(data)
                await writer.drain()
            writer.write_eof()

        async def downward() -> None:
            while data := await reader.read(1 << 20):
                stream.write([data])
                await stream.drain()

        with contextlib.suppress(ExceptionGroup):
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(upward())
                    group.create_task(downward())
            finally:
                writer.transport.abort()

    return relay


@contextlib.asynccontextmanager
async def proxied(resident: DialledProcess, bytes_max: int) -> AsyncIterator[list[int]]:
    """Stands at the daemon's address before it, and cuts each connection after so many bytes, within a frame or not."""
    outside = resident.home.port
    cuts: list[int] = []
    some = random.Random(4)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: list[int]) -> None:
        while left[0] > 0 and (data := await reader.read(min(left[0], 65536))):
            left[0] -= len(data)
            writer.write(data)
            await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = [some.randrange(bytes_max // 2, bytes_max)]
        inner: asyncio.StreamWriter | None = None
        try:
            there, inner = await asyncio.open_connection("127.0.0.1", resident.home.port)
            both = [asyncio.create_task(carry(reader, inner, left)), asyncio.create_task(carry(there, writer, left))]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for each in both:
                each.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            cuts.append(left[0])
        except OSError:
            pass
        finally:
            writer.transport.abort()
            if inner is not None:
                inner.transport.abort()

    resident.home._port = 0  # the daemon listens elsewhere from now on
    await resident.home.begin(nobody)
    server = await asyncio.start_server(serve, sock=bound(outside))
    yield cuts
    server.close()


def bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made
