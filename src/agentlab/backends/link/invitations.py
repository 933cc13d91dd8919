"""Who may come in over the network: tokens that are redeemed once, and the credentials that they buy."""

from __future__ import annotations

import asyncio
import enum
import hashlib
import hmac
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from agentlab.base.clock import Clock
from agentlab.base.entropy import Entropy
from agentlab.base.files import make_directory, sync_directory, write_atomic
from agentlab.base.secret import Secret
from agentlab.base.tasks import in_thread
from agentlab.model.ids import SandboxId, is_id
from agentlab_guest.knock import Knock

log = logging.getLogger(__name__)

TOKEN_BYTES = 16  # in hexadecimal: an invitation is short
CREDENTIAL_BYTES = 32
INVITATION_TTL_S = 1800  # from being written to the first redemption: a clone, and a boot on a busy node


@dataclass(frozen=True, slots=True, kw_only=True)
class Invited:
    """What is kept of a sandbox's right to come in.  Hashes only: whoever reads it cannot come in with it.

    `until`: seconds since the epoch.  `nonce`: of the guest that redeemed the token.  `accepted`: it has the
    credential for certain, and the token is spent.
    """

    sandbox: SandboxId
    token_sha256: str
    until: float
    nonce_sha256: str | None = None
    credential_sha256: str | None = None
    accepted: bool = False


class InvitationStore(Protocol):
    """Where it is kept.  Each call is durable when it returns.  Raises OSError."""

    async def load(self) -> Sequence[Invited]:
        """All of them, at start."""
        ...

    async def put(self, row: Invited) -> None:
        """Keep this one instead of the sandbox's former."""
        ...

    async def remove(self, sandbox: SandboxId) -> None:
        """Forget it; quiet if there is none."""
        ...


class Verdict(enum.Enum):
    """What a knock comes to.  The values are what a guest is told."""

    ENTER = ""
    REDEEM = "redeem"  # come in, and get a credential
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    SPENT = "spent"  # somebody else has the token too


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What a knock came to.  `credential` is to be given if it is REDEEM; `standing` is by what right it came in."""

    verdict: Verdict
    credential: Secret | None = None
    standing: str = ""

    @property
    def let_in(self) -> bool:
        """Whether it may come in."""
        return self.verdict in (Verdict.ENTER, Verdict.REDEEM)


def judge(row: Invited | None, knock: Knock, now: float) -> Verdict:
    """Whether this guest may come in.  Secrets are compared in constant time."""
    if row is None:
        return Verdict.UNKNOWN
    if knock.credential is not None:
        known = row.credential_sha256
        return Verdict.ENTER if known and hmac.compare_digest(known, sha256(knock.credential)) else Verdict.UNKNOWN
    if knock.token is None or not hmac.compare_digest(row.token_sha256, sha256(knock.token)):
        return Verdict.UNKNOWN
    if row.nonce_sha256 is None:
        return Verdict.REDEEM if now < row.until else Verdict.EXPIRED
    # Until it says that it has the credential, the same guest may ask for it again: the answer may have been lost.
    same = hmac.compare_digest(row.nonce_sha256, sha256(knock.nonce))
    return Verdict.REDEEM if same and not row.accepted else Verdict.SPENT


def sha256(text: str) -> str:
    """In hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


class Invitations:
    """All of one installation.  What is decided is durable before anybody is told."""

    def __init__(self, store: InvitationStore, clock: Clock, entropy: Entropy) -> None:
        self._store, self._clock, self._entropy = store, clock, entropy
        self._rows: dict[SandboxId, Invited] = {}
        self._locks: dict[SandboxId, asyncio.Lock] = {}

    async def load(self) -> None:
        """Go on where a former daemon stopped.  Once, before anything else.  OSError."""
        self._rows = {each.sandbox: each for each in await self._store.load()}

    def __contains__(self, sandbox: SandboxId) -> bool:
        return sandbox in self._rows

    async def invite(self, sandbox: SandboxId, ttl_s: float = INVITATION_TTL_S) -> Secret:
        """A new token for the sandbox, to be redeemed within `ttl_s`; what it had before is worth nothing.  OSError."""
        token = Secret(self._entropy.token(TOKEN_BYTES))
        async with self._lock(sandbox):
            await self._keep(
                Invited(sandbox=sandbox, token_sha256=sha256(token.reveal()), until=self._clock.now() + ttl_s)
            )
        return token

    async def revoke(self, sandbox: SandboxId) -> None:
        """Nobody comes in as this sandbox any more.  Quiet if nobody could.  OSError."""
        async with self._lock(sandbox):
            await self._store.remove(sandbox)
            self._rows.pop(sandbox, None)
        self._locks.pop(sandbox, None)

    def standing(self, sandbox: SandboxId) -> str:
        """By what right its guest comes in now; another one after each `invite`, empty when there is none."""
        row = self._rows.get(sandbox)
        return "" if row is None else row.token_sha256

    async def admit(self, knock: Knock) -> Admission:
        """Whether this guest may come in; the token that it redeems is bound to it from now on.  OSError."""
        sandbox = SandboxId(knock.sandbox)
        if not (found := self._judged(sandbox, knock)).let_in:
            return found
        async with self._lock(sandbox):  # only who shows something true waits here, for others of the same sandbox
            if not (found := self._judged(sandbox, knock)).let_in:
                return found
            row = self._rows[sandbox]
            if found.verdict is Verdict.ENTER:
                if not row.accepted:
                    await self._keep(replace(row, accepted=True))
                return found
            credential = Secret(self._entropy.token(CREDENTIAL_BYTES))
            known = sha256(credential.reveal())
            await self._keep(replace(row, nonce_sha256=sha256(knock.nonce), credential_sha256=known))
            return replace(found, credential=credential)

    async def accepted(self, sandbox: SandboxId, credential: Secret) -> bool:
        """The guest has its credential: the token is spent.  False if the credential is no longer the one.  OSError."""
        async with self._lock(sandbox):
            row = self._rows.get(sandbox)
            if row is None or row.credential_sha256 != sha256(credential.reveal()):
                return False
            await self._keep(replace(row, accepted=True))
            return True

    def _judged(self, sandbox: SandboxId, knock: Knock) -> Admission:
        return Admission(
            verdict=judge(self._rows.get(sandbox), knock, self._clock.now()), standing=self.standing(sandbox)
        )

    async def _keep(self, row: Invited) -> None:
        await self._store.put(row)
        self._rows[row.sandbox] = row

    def _lock(self, sandbox: SandboxId) -> asyncio.Lock:
        return self._locks.setdefault(sandbox, asyncio.Lock())


class FileStore:
    """A file for each sandbox, in a folder that is the daemon's alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def load(self) -> Sequence[Invited]:
        return await in_thread(self._load)

    async def put(self, row: Invited) -> None:
        path, content = self._path(row.sandbox), json.dumps(asdict(row)).encode()
        await in_thread(lambda: write_atomic(path, content))

    async def remove(self, sandbox: SandboxId) -> None:
        await in_thread(lambda: self._remove(self._path(sandbox)))

    def _path(self, sandbox: SandboxId) -> Path:
        assert is_id(sandbox), sandbox
        return self._folder / f"{sandbox}.json"

    def _load(self) -> Sequence[Invited]:
        make_directory(self._folder)
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                row = Invited(**json.loads(path.read_bytes()))
                if f"{row.sandbox}.json" != path.name:
                    raise ValueError(f"it is of {row.sandbox}")
                found.append(row)
            except (ValueError, TypeError) as error:
                # Its guest is not let in, which is seen, and a new invitation writes it anew.
                log.warning("invitation is damaged", extra={"path": str(path), "cause": str(error)})
        return found

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        sync_directory(self._folder)
