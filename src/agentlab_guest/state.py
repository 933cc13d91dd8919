"""What survives the guest process: the session in tmpfs, the memory of the job on disk, a lock against a second one."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time

from agentlab_guest.machine import Memory
from agentlab_guest.record import fields, record
from agentlab_guest.strict import Malformed, checked, dump, flag, integer, maybe, parse_object, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LOCK_WAIT_S = 10.0
RESERVE_BYTES = 16 << 20  # kept free for saving the work when the agent has filled the disk
_MEMORY = {
    "job": text(64),
    "phase": text(64),
    "base_commit": maybe(text(64)),
    "agent_started": flag,
    "exit_status": maybe(integer),
    "ended": flag,
    "stop_reason": maybe(text(64)),
}
_SESSION = {"credential": text(512), "bootstrap": text(8 << 20)}


class AnotherGuest(Exception):
    """Another guest program works on this state directory."""


@record
class Session:
    """The right to come back, and the job that was given.  Secret."""

    credential: str
    bootstrap: bytes


class RunDirectory:
    """The tmpfs: secrets only."""

    def __init__(self, path: str) -> None:
        os.makedirs(path, mode=0o700, exist_ok=True)
        self._path = f"{path}/session.json"

    def load(self) -> Session | None:
        """The session of a former guest process, if there was one."""
        raw = _read(self._path)
        if raw is None:
            return None
        try:
            found = checked(parse_object(raw), _SESSION, "session")
        except Malformed:
            return None
        return Session(credential=found["credential"], bootstrap=found["bootstrap"].encode())

    def save(self, session: Session) -> None:
        """Keep the session, before the grant is said to be spent."""
        _write(self._path, dump({"credential": session.credential, "bootstrap": session.bootstrap.decode()}))


class StateDirectory:
    """The disk: memory, report, spool, pristine base; nothing secret but what the work itself holds."""

    def __init__(self, path: str) -> None:
        os.makedirs(path, mode=0o700, exist_ok=True)
        os.chmod(path, 0o700)
        self.path = path
        self._lock = -1

    def lock(self, *, evict: bool) -> None:
        """Be the only guest here.  With `evict`, a former one that still hangs is killed.  Raises AnotherGuest."""
        self._lock = os.open(f"{self.path}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        give_up = time.monotonic() + LOCK_WAIT_S
        while not _locked(self._lock):
            if not evict or time.monotonic() > give_up:
                raise AnotherGuest(f"process {_holder(self._lock) or 'unknown'} holds {self.path}/lock")
            if holder := _holder(self._lock):
                try:
                    os.kill(holder, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.05)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def load(self, job: str) -> Memory | None:
        """What a former guest of this job remembered."""
        raw = _read(f"{self.path}/job.json")
        if raw is None:
            return None
        try:
            found = checked(parse_object(raw), _MEMORY, "memory")
        except Malformed:
            return None
        return Memory(**found) if found.pop("job") == job else None

    def save(self, job: str, memory: Memory) -> None:
        """Make the memory durable; on a full disk the reserve is given up for it."""
        values: dict[str, Any] = fields(memory)
        self._write_surely("job.json", dump({"job": job} | values))

    def load_report(self) -> bytes | None:
        """The report of a former guest, if it got that far."""
        return _read(f"{self.path}/report.json")

    def save_report(self, raw: bytes) -> None:
        """Keep the report until it is acknowledged."""
        self._write_surely("report.json", raw)

    def reserve(self) -> None:
        """Set aside RESERVE_BYTES."""
        file = os.open(f"{self.path}/reserve", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, RESERVE_BYTES)
        except OSError:
            pass  # a file system without it, or full already: nothing to give up later
        finally:
            os.close(file)

    def release(self) -> None:
        """Give the reserve up."""
        try:
            os.unlink(f"{self.path}/reserve")
        except FileNotFoundError:
            pass

    def _write_surely(self, name: str, raw: bytes) -> None:
        try:
            _write(f"{self.path}/{name}", raw)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.release()
            _write(f"{self.path}/{name}", raw)


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: int) -> int:
    raw = os.pread(file, 32, 0)
    return int(raw) if raw.isdigit() and int(raw) > 1 else 0


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _write(path: str, raw: bytes) -> None:
    scratch = f"{path}.new"
    file = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(file, 0o600)
        written = 0
        while written < len(raw):
            written += os.write(file, memoryview(raw)[written:])
        os.fsync(file)
    finally:
        os.close(file)
    os.replace(scratch, path)
