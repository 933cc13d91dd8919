"""Whom we speak with: a cluster's authority or a pinned certificate, checked in the handshake, before any header.

A pinned certificate becomes the only trust anchor of the connections that carry the token, so that there is no moment
between the check and the use.  Nothing here can be told to look away.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import ssl
from dataclasses import dataclass

CERTIFICATE_S_MAX = 10.0  # until a server has shown its certificate

_FINGERPRINT = re.compile(r"[0-9A-F]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One address of a cluster's API.  `name` is what its certificate says, where `host` is only an address."""

    host: str
    port: int = 8006
    name: str = ""

    @property
    def url(self) -> str:
        """`https://host:port`."""
        return f"https://[{self.host}]:{self.port}" if ":" in self.host else f"https://{self.host}:{self.port}"

    @property
    def server_name(self) -> str:
        """The name that is asked for, and verified where names are."""
        return self.name or self.host


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Exactly one of: certificates by their SHA-256, an authority's certificate, or the system's authorities.

    With pins, names and authorities do not matter, validity in time does.  Otherwise the endpoint's name must be in
    its certificate, too.
    """

    fingerprints: frozenset[str] = frozenset()  # as `fingerprint` writes them
    ca_pem: str = ""
    system: bool = False

    def __post_init__(self) -> None:
        if sum((bool(self.fingerprints), bool(self.ca_pem), self.system)) != 1:
            raise ValueError("trust needs one of: fingerprints, an authority's certificate, the system's authorities")

    def context(self) -> ssl.SSLContext:
        """Verifies against the authorities.  ValueError if their certificate cannot be read."""
        assert not self.fingerprints
        context = _context()
        if self.system:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
            return context
        try:
            context.load_verify_locations(cadata=self.ca_pem)
        except ssl.SSLError as error:
            raise ValueError(f"the authority's certificate cannot be read: {error.reason or error}") from error
        return context


def fingerprint(text: str | bytes) -> str:
    """A SHA-256 as Proxmox VE shows it, `AB:CD:…`, from any usual way to write it or from a certificate's DER.

    ValueError if a text is none.
    """
    if isinstance(text, bytes):
        digits = hashlib.sha256(text).hexdigest().upper()
    else:
        digits = re.sub(r"[:\s]", "", re.sub(r"^\s*sha-?256\s*[:=]\s*", "", text, flags=re.IGNORECASE)).upper()
        if _FINGERPRINT.fullmatch(digits) is None:
            raise ValueError(f"{text!r} is not the SHA-256 fingerprint of a certificate: 64 hexadecimal digits")
    return ":".join(digits[index : index + 2] for index in range(0, 64, 2))


async def presented(endpoint: Endpoint) -> bytes:
    """The certificate (DER) that a server shows, whoever it is; nothing but the handshake is sent to it.

    Raises OSError (TimeoutError and ssl.SSLError among them) if there is none to be had.
    """
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.verify_mode = ssl.CERT_NONE  # only looks; what carries the token is verified against what was seen here
    async with asyncio.timeout(CERTIFICATE_S_MAX):
        _, writer = await asyncio.open_connection(
            endpoint.host, endpoint.port, ssl=bare, server_hostname=endpoint.server_name
        )
        try:
            found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        finally:
            writer.transport.abort()  # without the farewell of TLS, for which some servers take their time
    if not isinstance(found, bytes):
        raise ConnectionError("the server showed no certificate")
    return found


def pinned(certificate: bytes) -> ssl.SSLContext:
    """Verifies that a server has exactly this certificate (DER) and its key, and that it has not expired."""
    context = _context()
    context.check_hostname = False
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=certificate)
    return context


def _context() -> ssl.SSLContext:
    # Not `create_default_context`: from Python 3.13 on it is strict about extensions that older clusters' own
    # certificates lack.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED
    return context
