"""An administrator's part, once: logging in, carrying out the steps of a set-up, and the token's own look at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from agentlab.backends.interface import Refused
from agentlab.backends.proxmox import lenient
from agentlab.backends.proxmox.answers import ProxmoxError
from agentlab.backends.proxmox.certificate import Endpoint, Trust
from agentlab.backends.proxmox.failures import Kind, kind_of, translated
from agentlab.backends.proxmox.privileges import Grantee, Lack, lacking
from agentlab.backends.proxmox.setup_steps import Step
from agentlab.backends.proxmox.transport import Token, Transport
from agentlab.base.clock import Clock, sleep
from agentlab.base.entropy import Entropy
from agentlab.base.secret import Secret

SPREAD_S_MAX = 5.0  # until a change of rights is known to the node that is asked
SPREAD_PAUSE_S = 0.5
PRINT_INSTEAD = "Run it with --print and enter these lines as root on a node"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a cluster is, and who answers for it."""

    endpoints: Sequence[Endpoint]
    trust: Trust
    clock: Clock
    entropy: Entropy

    def transport(self, authorization: Token | dict[str, Secret]) -> Transport:
        """Calls with these credentials."""
        return Transport(self.endpoints, self.trust, authorization, clock=self.clock, entropy=self.entropy)


async def log_in(address: Address, name: str, secret: Secret) -> Transport:
    """Calls as this administrator: by the password of `user@realm`, or the secret of the token `user@realm!name`.

    The password goes to the cluster once; only the ticket that comes back is kept, for two hours at most.  Raises
    BackendError's subclasses; Refused for a wrong password and for a second factor.
    """
    if "!" in name:
        return await _by_token(address, Token(id=name, secret=secret))
    transport = address.transport({})
    try:
        answer = lenient.row(await transport.call("POST", "/access/ticket", {"username": name, "password": secret}))
    except ProxmoxError as error:
        if error.status == 401:
            raise Refused(
                f"the cluster does not accept the log-in of {name}: {error.words}",
                "Check user, realm (as in root@pam) and password; "
                f"of an account with a second factor, too.  {PRINT_INSTEAD} if there is no other way.",
            ) from error
        raise translated(error, f"logging in as {name}") from error
    finally:
        await transport.close()
    ticket, proof = lenient.text(answer, "ticket"), lenient.text(answer, "CSRFPreventionToken")
    if lenient.truth(answer, "NeedTFA") or ticket.startswith("PVE:!tfa!"):
        raise Refused(
            f"{name} logs in with a second factor, which this program does not ask for",
            f"{PRINT_INSTEAD}; or give --admin the id of an API token of an administrator (user@realm!name), and its "
            "secret for the password.",
        )
    if not ticket:
        raise Refused(f"the cluster gave {name} no ticket", f"{PRINT_INSTEAD}.")
    return address.transport(
        {"cookie": Secret(f"PVEAuthCookie={quote(ticket, safe='')}"), "csrfpreventiontoken": Secret(proof)}
    )


async def accepted(address: Address, token: Token) -> bool:
    """Whether the cluster takes the token.  Raises BackendError if it cannot be asked."""
    transport = address.transport(token)
    try:
        await transport.call("GET", "/version")
    except ProxmoxError as error:
        if kind_of(error) is Kind.AUTH:
            return False
        raise translated(error, "trying the token") from error
    finally:
        await transport.close()
    return True


async def carry_out(
    transport: Transport, steps: Sequence[Step], keep: Callable[[Secret], None], told: Callable[[Step], None]
) -> None:
    """Each step in its order.  `keep` gets the secret of a token at once, before anything else can fail.

    Raises BackendError for the step that failed; those before it were `told` as done, those after it were not begun.
    """
    for step in steps:
        answer: object = None
        for call in step.calls:
            try:
                answer = await transport.call(call.method, call.path, call.params)
            except ProxmoxError as error:
                raise translated(error, step.does) from error
        if step.makes_token:
            secret = lenient.text(lenient.row(answer), "value")
            if not secret:
                raise Refused("the cluster told no secret of the token that it made", "Run it again with --regenerate.")
            keep(Secret(secret))
        told(step)


async def verified(address: Address, token: Token, grantee: Grantee) -> list[Lack]:
    """What the token lacks, as it sees itself: none if the set-up is good.  Raises BackendError."""
    transport = address.transport(token)
    began = address.clock.monotonic()
    try:
        while True:
            permissions = lenient.row(await transport.call("GET", "/access/permissions"))
            lacks = lacking(permissions, grantee)
            if not lacks or address.clock.monotonic() - began > SPREAD_S_MAX:
                return lacks
            await sleep(SPREAD_PAUSE_S)
    except ProxmoxError as error:
        raise translated(error, "asking as the token for its rights", grantee) from error
    finally:
        await transport.close()


async def _by_token(address: Address, token: Token) -> Transport:
    if not await accepted(address, token):
        raise Refused(
            f"the cluster does not accept the token {token.id}", "Check its secret, and whether it has expired."
        )
    return address.transport(token)
