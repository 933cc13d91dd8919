"""`agentlabd setup proxmox`: an administrator's log-in, once, becomes a token with the least that is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentlab.backends.interface import BackendError
from agentlab.backends.proxmox import administrator
from agentlab.backends.proxmox.administrator import Address
from agentlab.backends.proxmox.answers import ProxmoxError
from agentlab.backends.proxmox.certificate import Endpoint, Trust, fingerprint, presented
from agentlab.backends.proxmox.failures import translated
from agentlab.backends.proxmox.privileges import VERSIONS, Grantee, Lack
from agentlab.backends.proxmox.setup import SetupPlan, Wanted, plan
from agentlab.backends.proxmox.setup_seen import Seen, see
from agentlab.backends.proxmox.setup_steps import Step
from agentlab.backends.proxmox.transport import Token, Transport
from agentlab.base.clock import Clock
from agentlab.base.entropy import Entropy
from agentlab.base.secret import Secret
from agentlab.daemon import token_file
from agentlab.daemon.setup_person import Person
from agentlab.errors import PermissionMissing, SetupFailed

WHAT = "Proxmox VE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked for on the command line, checked.  `zone` None: the one that the bridge is found in."""

    endpoints: Sequence[Endpoint]
    trust: Trust | None  # None: whoever answers is shown, and somebody says whether that is right
    admin: str
    grantee: Grantee
    token_file: Path
    templates: Mapping[str, int]
    zone: str | None = None
    minimal: bool = False
    enable_import: bool = False
    enable_firewall: bool = False
    access_assured: bool = False
    regenerate: bool = False
    force: bool = False
    dry_run: bool = False
    yes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was planned, how much of it was done, and what the token lacks afterwards (None: it was not asked)."""

    version: str
    nodes: Sequence[str]
    plan: SetupPlan
    trust: Trust
    done: int
    lacks: Sequence[Lack] | None

    @property
    def good(self) -> bool:
        """Whether nothing is missing without which sandboxes cannot be made."""
        lacks = [each for each in self.lacks or () if each.privilege.essential(self.plan.grantee)]
        return not lacks and not self.plan.refusals


async def set_up(request: Request, person: Person, clock: Clock, entropy: Entropy) -> Outcome:
    """Look, show, ask, do, verify.

    Raises SetupFailed with what the cluster said, PermissionMissing for the token file, Invalid where an answer is
    needed and nobody can be asked, click.Abort for a no.  Whatever was done by then stays, and is left alone when it
    is run again.
    """
    try:
        token_file.require_place(request.token_file)
        held = token_file.read(request.token_file)
        trust = request.trust or await _trusted(request.endpoints, person)
        address = Address(endpoints=request.endpoints, trust=trust, clock=clock, entropy=entropy)
        secret = person.secret(f"{'Secret' if '!' in request.admin else 'Password'} of {request.admin}")
        transport = await administrator.log_in(address, request.admin, secret)
        try:
            return await _set_up(request, person, address, transport, held)
        finally:
            await transport.close()
    except BackendError as error:
        raise failed(error.cause, error.remedy) from error


def failed(cause: str, what_to_do: str) -> SetupFailed:
    """The error of this command."""
    return SetupFailed(what=WHAT, cause=cause, what_to_do=what_to_do)


async def _trusted(endpoints: Sequence[Endpoint], person: Person) -> Trust:
    """Show each certificate and have somebody compare it."""
    found = set()
    for endpoint in endpoints:
        try:
            shown = fingerprint(await presented(endpoint))
        except OSError as error:
            cause = error.strerror or str(error) or "it did not answer in time"
            raise failed(
                f"{endpoint.url}: cannot connect: {cause}", "Check the address and whether pveproxy runs."
            ) from error
        person.say(f"{endpoint.url} has the certificate with the SHA-256 fingerprint")
        person.say(f"  {shown}")
        person.say("`pvenode cert info` on that node shows what it should be.")
        person.confirm("Is it the same?", f"compare it on the node and give --fingerprint {shown}, or --ca-file")
        found.add(shown)
    return Trust(fingerprints=frozenset(found))


async def _set_up(
    request: Request, person: Person, address: Address, transport: Transport, held: Token | None
) -> Outcome:
    seen = await _seen(request, transport, address.clock.now())
    works = await _works(address, request.grantee, seen, held)
    planned = plan(_wanted(request, works), seen)
    show(planned, seen, request, person)
    done, token = 0, held if works else None
    if not request.dry_run:
        _require(planned, request, works)
        if planned.steps and not request.yes:
            person.confirm("Do this?", "give --yes to do it, or --dry-run only to look")
        token = await _carried_out(request, planned, transport, person) or token
        done = len(planned.steps)
    lacks = None
    if token is not None and not request.dry_run:
        lacks = await administrator.verified(address, token, planned.grantee)
    return Outcome(
        version=seen.version, nodes=sorted(seen.bridges), plan=planned, trust=address.trust, done=done, lacks=lacks
    )


async def _seen(request: Request, transport: Transport, now: float) -> Seen:
    try:
        seen = await see(transport, request.grantee, now)
    except ProxmoxError as error:
        raise translated(error, f"looking at the cluster as {request.admin}") from error
    if seen.major < VERSIONS[0]:
        raise failed(
            f"{seen.version or 'this version'} is not supported", f"Proxmox VE {VERSIONS[0]} or newer is needed."
        )
    return seen


async def _works(address: Address, grantee: Grantee, seen: Seen, held: Token | None) -> bool:
    """Whether the secret at hand is the token's.  It is shown only to a cluster that has a token of this name."""
    known = grantee.token.partition("!")[2] in seen.tokens
    return held is not None and known and held.id == grantee.token and await administrator.accepted(address, held)


def _wanted(request: Request, works: bool) -> Wanted:
    return Wanted(
        grantee=request.grantee,
        zone=request.zone,
        token_works=works,
        regenerate=request.regenerate,
        minimal=request.minimal,
        enable_import=request.enable_import,
        enable_firewall=request.enable_firewall,
        access_assured=request.access_assured,
    )


def _require(planned: SetupPlan, request: Request, works: bool) -> None:
    """Raise SetupFailed unless it can be begun and come to its end.  Nothing was changed so far."""
    if planned.refusals:
        cause = "; ".join(f"{each.name}: {each.detail}" for each in planned.refusals)
        raise failed(f"{cause} (nothing was changed)", "  ".join(each.remedy for each in planned.refusals))
    makes_token = any(each.makes_token for each in planned.steps)
    if makes_token and request.token_file.exists() and not works and not request.force:
        raise failed(
            f"{request.token_file} holds a token that this cluster does not know: maybe another cluster's "
            "(nothing was changed)",
            "Name another file with --token-file, or overwrite this one with --force.",
        )


async def _carried_out(request: Request, planned: SetupPlan, transport: Transport, person: Person) -> Token | None:
    """All steps; the token if one was made.  SetupFailed says how far it got."""
    made: list[Token] = []
    done: list[str] = []

    def keep(secret: Secret) -> None:
        token = Token(id=planned.grantee.token, secret=secret)
        token_file.write(request.token_file, token)
        made.append(token)

    def told(step: Step) -> None:
        done.append(step.does)
        person.say(f"  ✓ {step.does}")

    try:
        await administrator.carry_out(transport, planned.steps, keep, told)
    except BackendError as error:
        rest = f"{len(done)} of {len(planned.steps)} steps were done; they are left alone when it is run again"
        raise failed(f"{error.cause} ({rest})", error.remedy) from error
    except PermissionMissing as error:
        raise failed(
            f"the token was made, but its secret could not be kept: {error}",
            f"Run it again with --regenerate and another --token-file.  {error.advice}",
        ) from error
    return made[0] if made else None


def show(planned: SetupPlan, seen: Seen, request: Request, person: Person) -> None:
    """What is there, what is to be done and what somebody has to see to, before anything is changed."""
    where = ", ".join(each.url for each in request.endpoints)
    person.say(f"Proxmox VE {seen.version} at {where}; nodes online: {', '.join(sorted(seen.bridges)) or 'none'}")
    if planned.kept:
        person.say("\nIs right already:")
        for kept in planned.kept:
            person.say(f"  ✓ {kept}")
    if planned.steps:
        person.say("\nIs to be done:")
        for number, step in enumerate(planned.steps, 1):
            person.say(f"  {number}. {step.does}")
            person.say(f"       {step.command}")
    else:
        person.say("\nThere is nothing to be done.")
    if planned.findings:
        person.say("\nNeeds to be seen to:")
        for each in planned.findings:
            person.say(f"  {'✗' if each.fatal else '!'} {each.name}: {each.detail}")
            person.say(f"       {each.remedy}")
    person.say()
