"""The agent's merged output: from its pipe, through redaction, into the spool, within limits."""

from __future__ import annotations

import fcntl
import os

from agentlab_guest.messages import OUTPUT_BYTES_MAX
from agentlab_guest.redact import Redactor
from agentlab_guest.spool import OUTPUT_SPOOL_BYTES_MAX, OutputSpool

HOLD_S_MAX = 0.2  # how long bytes may wait for what decides whether they begin a secret
READ_BYTES = 256 << 10
PIPE_BYTES = 1 << 20
NOTE_BYTES_MAX = 4096  # kept free below OUTPUT_BYTES_MAX


class AgentOutput:
    """The reading end of the agent's pipe."""

    def __init__(self, spool: OutputSpool, redactor: Redactor) -> None:
        self._spool, self._redactor = spool, redactor
        self._dropped = 0
        self._full = spool.end >= OUTPUT_BYTES_MAX - NOTE_BYTES_MAX
        self._held_since: float | None = None
        self.descriptor = -1

    def open(self) -> int:
        """Make the pipe; the writing end, which the caller closes once the agent has it."""
        self.descriptor, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.descriptor, False)
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            pass  # above the limit for unprivileged users: slower, not wrong
        return writing

    def wanted(self, connected: bool) -> bool:
        """Whether to read on: while connected, the agent waits for room; otherwise what does not fit is dropped."""
        return not connected or self._full or self._spool.room > READ_BYTES * 2

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        return None if self._held_since is None else self._held_since + HOLD_S_MAX

    def read(self, now: float) -> bool:
        """Take what the pipe holds, a bounded amount.  False at its end."""
        try:
            data = os.read(self.descriptor, READ_BYTES)
        except BlockingIOError:
            return True
        if not data:
            return False
        if self._full:
            return True
        self._put(self._redactor.feed(data))
        if not self._redactor.held:
            self._held_since = None
        elif self._held_since is None:
            self._held_since = now
        return True

    def tick(self, now: float) -> None:
        """Give out what has waited long enough and cannot begin a secret."""
        if self._held_since is not None and now - self._held_since >= HOLD_S_MAX:
            self._put(self._redactor.idle())
            self._held_since = None

    def finish(self) -> None:
        """Nobody writes any more: take the rest, and close."""
        if self.descriptor >= 0:
            while not self._ended():
                pass
            os.close(self.descriptor)
            self.descriptor = -1
        self._put(self._redactor.finish())
        self._held_since = None
        if self._dropped:
            self._note()

    def _ended(self) -> bool:
        try:
            data = os.read(self.descriptor, READ_BYTES)
        except BlockingIOError:
            return True  # a process that resists SIGKILL still has the other end
        if data and not self._full:
            self._put(self._redactor.feed(data))
        return not data

    def _put(self, data: bytes) -> None:
        if not data or self._full:
            return
        if self._spool.end + len(data) > OUTPUT_BYTES_MAX - NOTE_BYTES_MAX:
            self._full = True
            self._dropped = 0
            limit = f"OUTPUT_BYTES_MAX = {OUTPUT_BYTES_MAX}"
            self._spool.append(f"\n[agentlab: output truncated here: {limit} is reached]\n".encode())
        elif not self._added(data):
            self._dropped += len(data)

    def _added(self, data: bytes) -> bool:
        if self._spool.room < len(data) + NOTE_BYTES_MAX or (self._dropped and not self._note()):
            return False
        return self._spool.append(data)

    def _note(self) -> bool:
        reason = f"OUTPUT_SPOOL_BYTES_MAX = {OUTPUT_SPOOL_BYTES_MAX} was reached or the sandbox's disk was full"
        noted = self._spool.append(f"\n[agentlab: output truncated: {self._dropped} bytes; {reason}]\n".encode())
        if noted:
            self._dropped = 0
        return noted
