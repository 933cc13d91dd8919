"""Secret values at rest: encrypted with age to a key that only this installation holds."""

from __future__ import annotations

from pathlib import Path

from pyrage import decrypt, encrypt, x25519  # type: ignore[import-untyped]

from agentlab.base.files import make_directory, write_atomic


class Seal:
    """Encrypts what has to wait on disk, such as a queued job's environment."""

    def __init__(self, identity: x25519.Identity) -> None:
        self._identity = identity

    @classmethod
    def open(cls, directory: Path) -> Seal:
        """The installation's seal; its key file (0600) is made at first use.  OSError, ValueError if unreadable."""
        path = make_directory(directory) / "seal.key"
        if not path.exists():
            write_atomic(path, f"{x25519.Identity.generate()}\n".encode(), 0o600)
        return cls(x25519.Identity.from_str(path.read_text().strip()))

    def seal(self, content: bytes) -> bytes:
        """An age file that only `unseal` of this installation reads."""
        sealed: bytes = encrypt(content, [self._identity.to_public()])
        return sealed

    def unseal(self, sealed: bytes) -> bytes:
        """What `seal` was given.  ValueError if it was made with another key or is damaged."""
        try:
            opened: bytes = decrypt(sealed, [self._identity])
        except Exception as error:  # pyrage raises its own DecryptError, which derives from Exception alone
            raise ValueError("a sealed value cannot be opened with this installation's key") from error
        return opened
