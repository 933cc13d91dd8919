"""A guest program for simulations: the real protocol, an imagined agent."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from agentlab.base.entropy import Entropy
from agentlab_guest import messages as say
from agentlab_guest.protocol import GuestSide
from agentlab_guest.report import Report
from agentlab_guest.strict import Data

RETRY_S = 1.0


class Duplex(Protocol):
    """A connection to the daemon."""

    async def read(self) -> bytes:
        """The next bytes; empty at the end."""
        ...

    def write(self, buffers: list[Data]) -> None:
        """Send."""
        ...

    def close(self) -> None:
        """End it."""
        ...


@dataclass(slots=True)
class Disk:
    """What a guest leaves on its sandbox's disk: it outlives the guest."""

    output: bytes = b""
    events: list[tuple[str, str]] = field(default_factory=list)
    agent_ran: int = 0
    report: Report | None = None


class Refused(Exception):
    """The daemon wants nothing from this guest."""


class FakeGuest:
    """Redeems its grant, runs an agent of `run_s` seconds that writes a line a second, collects, reports, ends."""

    def __init__(
        self,
        *,
        grant: str,
        disk: Disk,
        connect: Callable[[], Awaitable[Duplex]],
        entropy: Entropy,
        run_s: float,
        on_agent: Callable[[str], None],
    ) -> None:
        self._grant: str | None = grant
        self._disk, self._connect, self._entropy = disk, connect, entropy
        self._run_s, self._on_agent = run_s, on_agent
        self._nonce = entropy.token(8)
        self._credential: str | None = None
        self._job, self._mode = "", ""
        self._stopped: str | None = None
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        self._working: asyncio.Task[None] | None = None
        self._artifact = b""
        self._stored = False

    async def run(self) -> None:
        """Until the report is acknowledged or the daemon refuses."""
        try:
            while True:
                try:
                    if await self._talk():
                        return
                except (ConnectionError, EOFError):
                    await asyncio.sleep(RETRY_S)
        except Refused:
            return
        finally:
            if self._working is not None:
                self._working.cancel()

    async def _talk(self) -> bool:
        link, side = await self._connect(), GuestSide()
        try:
            hello = say.Hello(
                protocol_min=1,
                protocol_max=1,
                version="sim",
                nonce=self._nonce,
                grant=None if self._credential else self._grant,
                credential=self._credential,
            )
            link.write(side.send(hello))
            welcome = await self._welcome(link, side)
            if self._working is None:
                self._working = asyncio.get_running_loop().create_task(self._work())
            return await self._exchange(link, side, welcome)
        finally:
            link.close()

    async def _welcome(self, link: Duplex, side: GuestSide) -> say.Welcome:
        for message in await _receive(link, side):
            if isinstance(message, say.Refused):
                if message.code == "busy":
                    raise ConnectionResetError
                raise Refused(message.code)
            assert isinstance(message, say.Welcome)
            if message.credential is not None:
                bootstrap = json.loads(bytes(message.data))
                self._credential, self._job, self._mode = message.credential, bootstrap["job"], bootstrap["mode"]
                link.write(side.send(say.Accepted()))
            if message.stop is not None:
                self._stopped = message.stop
                self._stop.set()
            return message
        raise EOFError

    async def _exchange(self, link: Duplex, side: GuestSide, welcome: say.Welcome) -> bool:
        sent, events, offered, reported = welcome.output_acked, welcome.event_acked, False, False
        reader = asyncio.get_running_loop().create_task(_receive(link, side))
        try:
            while True:
                if len(self._disk.output) > sent:
                    link.write(side.send(say.Output(offset=sent, data=self._disk.output[sent:])))
                    sent = len(self._disk.output)
                for phase, detail in self._disk.events[events:]:
                    events += 1
                    link.write(side.send(say.Event(seq=events, at=0.0, phase=phase, detail=detail)))
                if self._disk.report is not None and not offered and not welcome.reported:
                    offered = True
                    link.write(side.send(self._offer()))
                if self._disk.report is not None and self._stored and not reported and not welcome.reported:
                    reported = True
                    link.write(side.send(say.ReportMessage(data=self._disk.report.encode())))
                self._changed.clear()
                waiter = asyncio.get_running_loop().create_task(self._changed.wait())
                try:
                    done, _ = await asyncio.wait({reader, waiter}, timeout=5, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waiter.cancel()
                if not done:
                    link.write(side.send(say.Heartbeat(phase="run", output=len(self._disk.output))))
                if reader in done:
                    for message in reader.result():
                        if isinstance(message, say.ReportAck):
                            return True
                        self._take(message, link, side)
                    reader = asyncio.get_running_loop().create_task(_receive(link, side))
                if welcome.reported:
                    return True
        finally:
            reader.cancel()

    def _take(self, message: say.Message, link: Duplex, side: GuestSide) -> None:
        match message:
            case say.Stop(reason=reason):
                self._stopped = reason
                self._stop.set()
            case say.ArtifactWant(id=number, offset=offset):
                link.write(side.send(say.ArtifactChunk(id=number, offset=offset, data=self._artifact[offset:])))
            case say.ArtifactStored() | say.ArtifactRefused():
                self._stored = True
                self._changed.set()
            case say.Refused():
                raise Refused(message.code)
            case _:
                pass

    def _offer(self) -> say.ArtifactOffer:
        self._artifact = b"patch of " + self._job.encode() + b"\n" + self._disk.output
        digest = hashlib.sha256(self._artifact).hexdigest()
        return say.ArtifactOffer(id=1, name="result.patch", kind="patch", bytes=len(self._artifact), digest=digest)

    async def _work(self) -> None:
        if self._mode == "collect":
            outcome = "lost"
        else:
            self._on_agent(self._job)
            self._disk.agent_ran += 1
            for phase in ("fetch", "prepare", "run"):
                self._note(phase)
            outcome = await self._agent()
        self._note("collect")
        await asyncio.sleep(self._entropy.fraction() * 3)
        exit_status = {"succeeded": 0, "failed": 1}.get(outcome)
        self._disk.report = Report(outcome=outcome, exit_status=exit_status, summary="simulated")
        self._note("report")

    async def _agent(self) -> str:
        lines = 0
        try:
            async with asyncio.timeout(self._run_s):
                while not self._stop.is_set():
                    lines += 1
                    self._disk.output += f"line {lines}\n".encode()
                    self._changed.set()
                    try:
                        async with asyncio.timeout(1):
                            await self._stop.wait()
                    except TimeoutError:
                        continue
        except TimeoutError:
            return "failed" if self._entropy.fraction() < 0.2 else "succeeded"
        return self._stopped or "cancelled"

    def _note(self, phase: str) -> None:
        self._disk.events.append((phase, ""))
        self._changed.set()


async def _receive(link: Duplex, side: GuestSide) -> list[say.Message]:
    while True:
        data = await link.read()
        if not data:
            raise EOFError
        if received := side.receive(data):
            return received
