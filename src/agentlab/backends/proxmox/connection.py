"""The connections to one endpoint: verified before a header is sent, kept alive, and what broke them told apart."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping

import httpx2

from agentlab.backends.proxmox.answers import Distrusted, NoAnswer
from agentlab.backends.proxmox.certificate import Endpoint, Trust, fingerprint, pinned, presented
from agentlab.backends.proxmox.lanes import CallClass
from agentlab.backends.proxmox.request import Request
from agentlab.base.text import one_line

CONNECT_S_MAX = 5.0  # for TCP and TLS, each
KEEPALIVE_S = 3.0  # the server closes after 5 s of silence; below that, so that no call meets a closing connection
ANSWER_BYTES_MAX = 32 << 20  # of one answer
UPLOAD_SILENCE_S_MAX = 120.0  # without a byte's progress


class Connection:
    """One endpoint.  Calls may overlap."""

    def __init__(self, endpoint: Endpoint, trust: Trust) -> None:
        """Raises ValueError for trust that cannot be used."""
        self.endpoint, self._trust = endpoint, trust
        self._authorities = None if trust.fingerprints else trust.context()
        self._client: httpx2.AsyncClient | None = None
        self._seen = ""  # the fingerprint that the client's connections are bound to, where there are pins
        self._retired: list[httpx2.AsyncClient] = []  # calls may still be in flight on them
        self._opening = asyncio.Lock()

    async def exchange(self, request: Request, headers: Mapping[str, str], limit_s: float) -> tuple[int, str, bytes]:
        """Status, reason and body of the answer.  NoAnswer, Distrusted; OSError for a file that is uploaded.

        `headers` are the credentials; they leave this process only for a server that was verified.
        """
        client = await self._opened(request)
        try:
            async with asyncio.timeout(limit_s):
                return await self._exchanged(client, request, headers, limit_s)
        except TimeoutError as error:
            raise self._lost(request, f"no answer within {limit_s:g} s", sent=True) from error
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            if (refusal := _refusal(error)) is not None:
                raise await self._distrusted(request, refusal) from error
            raise self._lost(request, f"cannot connect: {_root(error)}", sent=False) from error
        except httpx2.PoolTimeout as error:
            raise self._lost(request, "no free connection", sent=False) from error
        except httpx2.TimeoutException as error:
            raise self._lost(request, "no answer in time", sent=True) from error
        except httpx2.TransportError as error:
            raise self._lost(request, f"the connection broke: {_root(error)}", sent=True) from error

    async def close(self) -> None:
        """Close all connections."""
        clients = [*self._retired, *([self._client] if self._client is not None else [])]
        self._client, self._retired = None, []
        for client in clients:
            await client.aclose()

    async def _exchanged(
        self, client: httpx2.AsyncClient, request: Request, headers: Mapping[str, str], limit_s: float
    ) -> tuple[int, str, bytes]:
        silence_s = UPLOAD_SILENCE_S_MAX if request.call is CallClass.UPLOAD else limit_s
        async with client.stream(
            request.method,
            f"/api2/json{request.target}",
            content=request.content(),
            headers={**request.headers, **headers},
            timeout=httpx2.Timeout(silence_s, connect=CONNECT_S_MAX),
            extensions={"sni_hostname": self.endpoint.server_name},
        ) as response:
            content = bytearray()
            async for part in response.aiter_bytes():
                content += part
                if len(content) > ANSWER_BYTES_MAX:
                    raise httpx2.ReadError(f"its answer is longer than {ANSWER_BYTES_MAX} bytes")
            phrase = response.extensions.get("reason_phrase", b"")
            return response.status_code, phrase.decode("utf-8", errors="replace"), bytes(content)

    async def _opened(self, request: Request) -> httpx2.AsyncClient:
        async with self._opening:  # one look at the certificate serves all calls that wait for it
            if self._client is None:
                context = self._authorities or await self._pinned(request)
                self._client = httpx2.AsyncClient(
                    base_url=self.endpoint.url,
                    verify=context,
                    trust_env=False,  # neither a proxy nor a password of this machine's user
                    follow_redirects=False,
                    headers={"accept-encoding": "identity"},  # packing would cost the node's few workers more
                    limits=httpx2.Limits(keepalive_expiry=KEEPALIVE_S),
                )
            return self._client

    async def _pinned(self, request: Request) -> ssl.SSLContext:
        try:
            certificate = await presented(self.endpoint)
        except OSError as error:
            raise self._lost(request, f"cannot connect: {_root(error)}", sent=False) from error
        self._seen = fingerprint(certificate)
        if self._seen not in self._trust.fingerprints:
            raise self._refused(request, self._not_pinned(self._seen))
        return pinned(certificate)

    async def _distrusted(self, request: Request, refusal: str) -> Distrusted:
        """What to say of a certificate that was refused.  If it has changed, the next call looks at it afresh."""
        if not self._trust.fingerprints:
            return self._refused(request, refusal)
        try:
            found = fingerprint(await presented(self.endpoint))
        except OSError:
            return self._refused(request, refusal)
        if found != self._seen and self._client is not None:
            self._retired.append(self._client)
            self._client = None
        return self._refused(request, refusal if found in self._trust.fingerprints else self._not_pinned(found))

    def _not_pinned(self, found: str) -> str:
        wanted = ", ".join(sorted(self._trust.fingerprints))
        return f"the server's certificate has the SHA-256 fingerprint {found}, pinned is {wanted}"

    def _refused(self, request: Request, reason: str) -> Distrusted:
        return Distrusted(reason=f"{self.endpoint.url}: {reason}", method=request.method, path=request.path)

    def _lost(self, request: Request, reason: str, *, sent: bool) -> NoAnswer:
        where = f"{self.endpoint.url}: {one_line(reason)}"
        return NoAnswer(reason=where, method=request.method, path=request.path, sent=sent)


def _refusal(error: BaseException) -> str | None:
    """Why a certificate was refused, if that is what lies below `error`."""
    for each in _chain(error):
        if isinstance(each, ssl.SSLCertVerificationError):
            return f"the server's certificate is not accepted: {each.verify_message or each}"
    return None


def _root(error: BaseException) -> str:
    """What the operating system or TLS said; the libraries above say only that something failed."""
    for each in _chain(error):
        if isinstance(each, TimeoutError):
            return "it did not answer in time"
        if isinstance(each, OSError) and (each.strerror or each.args):
            return str(each.strerror or each)
    return str(error) or type(error).__name__


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
