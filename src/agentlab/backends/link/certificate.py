"""The certificate that guests know the daemon by: made once per installation, vouched for by its fingerprint alone."""

from __future__ import annotations

import hashlib
import ssl
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from pathlib import Path

from agentlab.backends.interface import Unavailable
from agentlab.base.files import make_directory, remove_tree, sync_directory
from agentlab.base.process import ProgramFailed, run, which
from agentlab.base.tasks import in_thread

DAYS = 3650  # guests compare fingerprints and look at no date; other programs that look at it want one
CERTIFICATE, KEY = "certificate.pem", "key.pem"
MAKE_S_MAX = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Where it lies, and its SHA-256 over DER in base64url, without padding."""

    folder: Path
    fingerprint: str

    def context(self) -> ssl.SSLContext:
        """For listening: TLS 1.3 and nothing older.  Unavailable if key and certificate do not go together."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        made.num_tickets = 0  # a guest that comes again shows its credential; nothing is resumed
        try:
            made.load_cert_chain(self.folder / CERTIFICATE, self.folder / KEY)
        except (OSError, ssl.SSLError) as error:
            raise _damaged(self.folder, error) from error
        return made


async def provide(folder: Path, installation: str) -> Certificate:
    """The installation's certificate, made with `openssl` at the first call.  Raises Unavailable, OSError.

    The key never lies anywhere with a wider mode than 0600, and the pair appears as one or not at all.
    """
    if not folder.exists():
        await _make(folder, installation)
    try:
        pem = (folder / CERTIFICATE).read_text("ascii")
        return Certificate(folder=folder, fingerprint=fingerprint(ssl.PEM_cert_to_DER_cert(pem)))
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error


def fingerprint(der: bytes) -> str:
    """Of a certificate, as an invitation names it."""
    return urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()


async def _make(folder: Path, installation: str) -> None:
    scratch = folder.with_name(f".{folder.name}.new")
    remove_tree(scratch)
    make_directory(scratch)
    program = which("openssl")
    if program is None:
        raise Unavailable("openssl is not installed", "Install it: apt-get install openssl")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
    out = ["-keyout", str(scratch / KEY), "-out", str(scratch / CERTIFICATE)]
    subject = ["-subj", f"/CN=agentlab-{installation}", "-days", str(DAYS)]
    try:
        await run([program, "req", "-x509", "-batch", *curve, *out, *subject], timeout_s=MAKE_S_MAX)
    except ProgramFailed as error:
        raise Unavailable(str(error), "Run `openssl version`; AgentLab needs OpenSSL 3.") from error
    (scratch / KEY).chmod(0o600)

    def settle() -> None:
        sync_directory(scratch)
        scratch.rename(folder)
        sync_directory(folder.parent)

    await in_thread(settle)


def _damaged(folder: Path, error: Exception) -> Unavailable:
    return Unavailable(
        f"the certificate that guests know this daemon by cannot be used: {folder}: {error}",
        "Restore the folder from a backup.  If it is removed, a new one is made, and sandboxes that run are lost.",
    )
