"""What Proxmox VE answers instead of doing it: one exception with a status, a text and texts per field."""

from __future__ import annotations

from collections.abc import Mapping

PARAMETERS_FAILED = "Parameter verification failed."
DENIED = "Permission check failed"
WRONG_CREDENTIALS_S = 3.0  # how long an answer 401 is held back


class Refused(Exception):
    """A call or a task ends with `text`.

    Outside a task it becomes an answer with `status`, whose reason phrase is the text's first line.  `bare` answers
    have no body.  Inside a task its `outcome` is the task's exit status.
    """

    def __init__(
        self,
        text: str,
        *,
        status: int = 500,
        errors: Mapping[str, str] | None = None,
        bare: bool = False,
        delay_s: float = 0.0,
    ) -> None:
        super().__init__(text)
        self.text, self.status, self.errors = text, status, dict(errors or {})
        self.bare, self.delay_s = bare, delay_s

    @property
    def reason(self) -> str:
        """The reason phrase: the first line of the text."""
        return self.text.partition("\n")[0]

    @property
    def outcome(self) -> str:
        """How a task words it: a bare text for 500, else with the status in front and the fields behind."""
        if self.status == 500:
            return self.text
        return "\n".join([f"{self.status} {self.text}", *(f"{key}: {text}" for key, text in self.errors.items())])

    def prefixed(self, what: str) -> Refused:
        """The same as part of a longer sentence, as calls that lock a file of the cluster word it: always 500."""
        return Refused(f"{what}: {self.outcome}")


def invalid(errors: Mapping[str, str]) -> Refused:
    """400, with a text per field."""
    return Refused(PARAMETERS_FAILED, status=400, errors=errors)


def denied(path: str | None = None, privileges: str = "") -> Refused:
    """403; with path and privileges where Proxmox VE names them."""
    return Refused(DENIED if path is None else f"{DENIED} ({path}, {privileges})", status=403)


def unauthenticated(text: str) -> Refused:
    """401 without a body, after a while."""
    return Refused(text, status=401, bare=True, delay_s=WRONG_CREDENTIALS_S)
