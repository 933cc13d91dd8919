"""A daemon's end for guests that come over the network, which can be ended and begun again as daemons are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentlab.backends.link.certificate import provide
from agentlab.backends.link.channels import GuestStream
from agentlab.backends.link.control import Control, Relay
from agentlab.backends.link.guests import Guests
from agentlab.backends.link.invitations import FileStore, Invitations
from agentlab.base.clock import SystemClock
from agentlab.base.entropy import SystemEntropy
from agentlab.model.ids import SandboxId
from agentlab_guest.invitation import encode

HELLO_S_MAX = 20.0


async def nobody(stream: GuestStream) -> None:
    """A relay that ends at once."""


@dataclass(slots=True, kw_only=True)
class GuestHome:
    """One installation in `folder`.  `begin` is a daemon's start, `end` its end; the address stays the same."""

    folder: Path
    host: str = "127.0.0.1"
    replayed: list[SandboxId] = field(default_factory=list)
    _port: int = 0
    _guests: Guests | None = None

    @property
    def guests(self) -> Guests:
        """Of the daemon that runs now."""
        assert self._guests is not None, "no daemon runs"
        return self._guests

    @property
    def port(self) -> int:
        """Where it listens, or did."""
        return self._port

    async def begin(self, relay: Relay = nobody, **more: Any) -> Guests:
        """A daemon; the one before, if there is one, ends first.  `more` are settings of `Guests`."""
        await self.end()
        clock, entropy = SystemClock(), SystemEntropy()
        self._guests = Guests(
            invitations=Invitations(FileStore(self.folder / "invitations"), clock, entropy),
            certificate=await provide(self.folder / "certificate", "test"),
            relay=relay,
            replayed=self._alarm,
            clock=clock,
            entropy=entropy,
            **more,
        )
        await self._guests.start(self.host, self._port)
        self._port = self._guests.address[1]
        return self._guests

    async def end(self) -> None:
        """The daemon goes; its guests stay."""
        if self._guests is not None:
            await self._guests.stop()
            self._guests = None

    async def invite(self, sandbox: SandboxId, **more: Any) -> bytes:
        """What its machine's firmware is to say."""
        return encode(await self.guests.invite(sandbox, **more))

    async def control(self, sandbox: SandboxId, within_s: float = HELLO_S_MAX) -> Control:
        """Its guest program."""
        return await self.guests.control(sandbox, within_s)

    async def _alarm(self, sandbox: SandboxId) -> None:
        self.replayed.append(sandbox)
