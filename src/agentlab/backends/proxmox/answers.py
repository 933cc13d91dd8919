"""What came back: the data of an answer, or an error that keeps all that was said.  Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType

from agentlab.backends.proxmox.wording import plain
from agentlab.base.text import one_line

CAUSE_LENGTH_MAX = 600  # of what Proxmox VE said, in one message


class ProxmoxError(Exception):
    """A call that Proxmox VE answered with an error, in its own words.

    `status` and `reason` are those of HTTP, where nearly everything is a 500 and the reason is the message; `errors`
    holds what it said of single parameters.  Parameters' values are not kept: they may be secrets.
    """

    def __init__(
        self,
        *,
        status: int,
        reason: str,
        method: str,
        path: str,
        message: str = "",
        errors: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(method, path, status, reason)
        self.status, self.reason, self.message = status, reason, message
        self.errors, self.method, self.path = dict(errors), method, path

    @property
    def text(self) -> str:
        """All that was said: the message, which may say more than the reason, and the fields."""
        said = self.message if self.message.strip() else self.reason
        fields = "; ".join(f"{key}: {value.strip()}" for key, value in sorted(self.errors.items()))
        return f"{said.strip()} {fields}" if fields else said.strip()

    @property
    def words(self) -> str:
        """The same in one bounded line, for people."""
        return plain(self.text, CAUSE_LENGTH_MAX)

    def __str__(self) -> str:
        return f"{self.method} {self.path}: {self.status} {self.words}"


class NoAnswer(ProxmoxError):
    """The connection failed or the time ran out.  If `sent`, the call may have been carried out all the same."""

    def __init__(self, *, reason: str, method: str, path: str, sent: bool) -> None:
        super().__init__(status=0, reason=reason, method=method, path=path)
        self.sent = sent

    def __str__(self) -> str:
        return f"{self.method} {self.path}: {self.words}"


class Distrusted(NoAnswer):
    """The server's certificate is not the one that was agreed on.  Nothing was sent to it, the token least of all."""

    def __init__(self, *, reason: str, method: str, path: str) -> None:
        super().__init__(reason=reason, method=method, path=path, sent=False)


def read_answer(*, method: str, path: str, status: int, reason: str, content: bytes) -> Mapping[str, object]:
    """The object of a good answer, with `data` and at times `total`.  ProxmoxError for anything else."""
    found = _parsed(content)
    if 200 <= status < 300 and isinstance(found, Mapping) and "data" in found:
        return found
    said = found if isinstance(found, Mapping) else {}
    message = str(said.get("message") or "")
    errors = said.get("errors")
    fields = {str(key): str(value) for key, value in errors.items()} if isinstance(errors, Mapping) else {}
    if not said and content:
        message = _shown(content)
    if 200 <= status < 300:
        reason, message = "its answer could not be read", f"its answer could not be read: {message or 'no data'}"
    raise ProxmoxError(status=status, reason=reason, method=method, path=path, message=message, errors=fields)


def _parsed(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:  # errors of the HTTP layer have no body or a plain text
        return None


def _shown(content: bytes) -> str:
    return one_line(content[:2000].decode(errors="replace"), 300)
