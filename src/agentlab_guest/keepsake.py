"""What a guest keeps between its connections, in memory that ends with the machine: who it is to its daemon."""

from __future__ import annotations

import contextlib
import hashlib
import os

from agentlab_guest.strict import Malformed, checked, digest, dump, maybe, parse_object, text

FILE = "link.json"
KEEPSAKE_BYTES_MAX = 4096
NONCE_BYTES = 16
_SHAPE = {"token": digest, "nonce": text(128), "credential": maybe(text(128))}


class Keepsake:
    """A nonce that goes with one token, and the credential that was got for it.

    Both are on their file before they are used, so that a guest program that was ended in between goes on as the same.
    """

    def __init__(self, folder: str, token: str) -> None:
        """What lies in `folder`, a tmpfs, if it belongs to this token; otherwise a new nonce.  OSError."""
        self._path = f"{folder}/{FILE}"
        self._token = hashlib.sha256(token.encode()).hexdigest()
        self.nonce, self.credential = "", None
        self._load()
        if not self.nonce:
            self.nonce = os.urandom(NONCE_BYTES).hex()
            self._save()

    nonce: str
    credential: str | None

    def keep(self, credential: str) -> None:
        """Keep the credential.  OSError."""
        self.credential = credential
        self._save()

    def _load(self) -> None:
        try:
            with open(self._path, "rb") as file:
                found = checked(parse_object(file.read(KEEPSAKE_BYTES_MAX)), _SHAPE, FILE)
        except (FileNotFoundError, Malformed):
            return
        if found["token"] == self._token:
            self.nonce, self.credential = found["nonce"], found["credential"]

    def _save(self) -> None:
        scratch = f"{self._path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(dump({"token": self._token, "nonce": self.nonce, "credential": self.credential}))
        os.rename(scratch, self._path)
