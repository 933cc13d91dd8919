"""Guests that come over the network: invited, let in, and reachable by the name of their sandbox."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Interface

from agentlab.backends.interface import BackendError, Unavailable
from agentlab.backends.link.certificate import Certificate
from agentlab.backends.link.control import Control, Nic, Relay
from agentlab.backends.link.doorstep import Doorstep
from agentlab.backends.link.invitations import INVITATION_TTL_S, Admission, Invitations, Verdict
from agentlab.backends.link.listener import (
    ENTER_S_MAX,
    REMARKS_BURST_MAX,
    REMARKS_PER_S_MAX,
    Afterwards,
    Listener,
)
from agentlab.base.clock import Clock
from agentlab.base.entropy import Entropy
from agentlab.base.pace import Pace
from agentlab.base.tasks import TaskScope
from agentlab.model.ids import SandboxId
from agentlab_guest.invitation import Invitation
from agentlab_guest.knock import Refused, Welcome, agreed

log = logging.getLogger(__name__)

GREET_S_MAX = 30.0  # from being let in to the guest program's hello
_SAID = {
    Verdict.UNKNOWN: "no such sandbox, token or credential",
    Verdict.EXPIRED: "the token was not redeemed in time",
    Verdict.SPENT: "the token was redeemed before",
}
Replayed = Callable[[SandboxId], Awaitable[None]]


@dataclass(slots=True)
class _Guest:
    """What is known of one sandbox's guest."""

    control: Control | None = None
    remark: str = "it has not called home"
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Guests:
    """The guests of one installation.  `replayed` is told a sandbox whose token somebody tried to redeem again.

    It is told of an invitation once, or a few times if tries come together or a daemon begins anew, and must be quick.
    """

    def __init__(
        self,
        *,
        invitations: Invitations,
        certificate: Certificate,
        relay: Relay,
        replayed: Replayed,
        clock: Clock,
        entropy: Entropy,
        enter_s_max: float = ENTER_S_MAX,
    ) -> None:
        self._invitations, self._certificate = invitations, certificate
        self._relay, self._replayed, self._entropy = relay, replayed, entropy
        self._listener = Listener(
            context=certificate.context(), enter=self._enter, enter_s_max=enter_s_max, clock=clock
        )
        self._scope = TaskScope("guests")
        self._guests: dict[SandboxId, _Guest] = {}
        self._told: dict[SandboxId, str] = {}  # of whose replay, by the standing of the invitation
        self._remarks = Pace(clock, per_s=REMARKS_PER_S_MAX, burst=REMARKS_BURST_MAX)  # a guest may come all the time

    @property
    def address(self) -> tuple[str, int]:
        """Where guests are listened for."""
        return self._listener.address

    async def start(self, host: str, port: int) -> None:
        """Go on with the invitations of a former daemon, and listen.  Raises Unavailable, OSError."""
        await self._invitations.load()
        await self._listener.start(host, port)

    async def stop(self) -> None:
        """Listen no more and let go of all guests; their machines go on and look for the next daemon."""
        await self._listener.stop()
        await self._scope.close()
        for guest in self._guests.values():
            if guest.control is not None:
                await guest.control.close()

    async def invite(
        self,
        sandbox: SandboxId,
        *,
        daemon: tuple[str, int] | None = None,
        nic: Nic | None = None,
        nameserver: str | None = None,
        ttl_s: float = INVITATION_TTL_S,
    ) -> Invitation:
        """What the sandbox's machine is to be told at its next boot; `agentlab_guest.invitation.encode` makes it bytes.

        Secret: it contains a token.  What the sandbox had before is worth nothing, and its connection ends.  `daemon`
        is this daemon's address as that machine sees it.  Raises OSError.
        """
        token = await self._invitations.invite(sandbox, ttl_s)
        await self._part(sandbox, "it was invited anew and has not called home")
        host, port = daemon or self.address
        return Invitation(
            sandbox=sandbox,
            daemon=f"{host}:{port}",
            token=token.reveal(),
            fingerprint=self._certificate.fingerprint,
            address=None if nic is None else str(IPv4Interface((nic.address, nic.prefix_length))),
            gateway=None if nic is None else str(nic.gateway),
            nameserver=nameserver,
            mac=None if nic is None else nic.mac,
            mtu=None if nic is None else nic.mtu,
        )

    async def forget(self, sandbox: SandboxId) -> None:
        """Nobody comes in as this sandbox any more, and who is in leaves.  Quiet if nobody could.  OSError."""
        await self._invitations.revoke(sandbox)
        await self._part(sandbox, "")
        self._guests.pop(sandbox, None)
        self._told.pop(sandbox, None)

    def linked(self, sandbox: SandboxId) -> Control | None:
        """The sandbox's guest program, if it is connected now."""
        guest = self._guests.get(sandbox)
        return None if guest is None else guest.control

    async def control(self, sandbox: SandboxId, within_s: float) -> Control:
        """The sandbox's guest program, waited for.  Unavailable, with what is known, if it does not come in time."""
        if sandbox not in self._invitations:
            raise Unavailable(f"the guest program of {sandbox} has not been invited", "Start the sandbox again.")
        guest = self._guests.setdefault(sandbox, _Guest())
        try:
            async with asyncio.timeout(within_s):
                while guest.control is None:
                    await guest.changed.wait()
                    guest.changed.clear()
            return guest.control
        except TimeoutError:
            raise Unavailable(
                f"the guest program of {sandbox} did not call home within {within_s:g} s: {guest.remark}",
                f"See the machine's console; it must reach {':'.join(map(str, self.address))} of this daemon.",
            ) from None

    # A connection

    async def _enter(self, step: Doorstep) -> Afterwards | None:
        knock = await step.knock()
        protocol = agreed(knock)
        if not protocol:
            step.say(Refused(code="version", message="the daemon and the guest share no protocol"))
            return None
        sandbox = SandboxId(knock.sandbox)
        try:
            admission = await self._invitations.admit(knock)
        except OSError as error:
            log.error("invitations cannot be written", extra={"sandbox": sandbox, "cause": str(error)})
            step.say(Refused(code="busy", message="the daemon cannot note that now"))
            return None
        if not admission.let_in:
            await self._turned_away(sandbox, admission)
            step.say(Refused(code=admission.verdict.value, message=_SAID[admission.verdict]))
            return None
        credential = admission.credential
        step.say(Welcome(protocol=protocol, credential=None if credential is None else credential.reveal()))
        if credential is not None:
            await step.acceptance()
            if not await self._invitations.accepted(sandbox, credential):
                return None
        transport = step.cleared()
        return lambda: self._link(sandbox, admission.standing, transport)

    async def _turned_away(self, sandbox: SandboxId, admission: Admission) -> None:
        if sandbox not in self._invitations:
            return  # not a name of ours: nothing is kept of it
        verdict = admission.verdict
        self._remark("guest was not let in", sandbox, verdict.value)
        self._guests.setdefault(sandbox, _Guest()).remark = f"it was not let in: {_SAID[verdict]}"
        if verdict is Verdict.SPENT and self._told.get(sandbox) != admission.standing:
            await self._replayed(sandbox)
            self._told[sandbox] = admission.standing

    def _remark(self, phrase: str, sandbox: SandboxId, cause: str) -> None:
        if self._remarks.allows():
            log.info(phrase, extra={"sandbox": sandbox, "cause": cause})

    async def _link(self, sandbox: SandboxId, standing: str, transport: asyncio.Transport) -> None:
        token = bytes.fromhex(self._entropy.token(32))
        try:
            control = await Control.adopt(
                transport, token=token, scope=self._scope, relay=self._relay, timeout_s=GREET_S_MAX
            )
        except BackendError as error:
            self._remark("guest was let in and did not answer", sandbox, error.cause)
            return
        cause = ""
        try:
            # The newest counts: a guest that comes again has lost its former connection, whatever that looks like here.
            await self._part(sandbox, "")
            if self._invitations.standing(sandbox) != standing:
                return  # it was invited anew, or forgotten, meanwhile
            guest = self._guests.setdefault(sandbox, _Guest())
            guest.control = control
            guest.changed.set()
            self._remark("guest is linked", sandbox, "")
            await control.wait_closed()
            cause = f"its connection ended: {control.cause}"
        finally:
            await control.close()
            former = self._guests.get(sandbox)
            if former is not None and former.control is control:
                former.control, former.remark = None, cause

    async def _part(self, sandbox: SandboxId, remark: str) -> None:
        guest = self._guests.get(sandbox)
        if guest is None:
            return
        control, guest.control, guest.remark = guest.control, None, remark
        if control is not None:
            await control.close()
