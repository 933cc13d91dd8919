"""Declared artifacts: which files of the hostile work tree may be brought back, and why the others may not."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat

from agentlab_guest.bootstrap import Bootstrap
from agentlab_guest.collect import printable
from agentlab_guest.record import record
from agentlab_guest.report import Skipped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NAME_BYTES_MAX = 1024
ENTRIES_MAX = 2_000_000  # looked at while matching
HASH_BYTES = 1 << 20
KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory; write NAME/** for what is in it",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@record
class Offer:
    """A file that is open, hashed, and may be sent: its first `bytes` bytes.  Whoever takes it closes `file`."""

    name: str
    kind: str
    file: int
    bytes: int
    digest: str


def pattern(glob: str) -> re.Pattern[str]:
    """A glob as a regular expression on relative paths: `*` and `?` stay within a name, `**` is any depth."""
    out, at = "", 0
    glob = glob.removeprefix("./").removeprefix("/")
    while at < len(glob):
        if glob.startswith("**/", at):
            out, at = out + "(?:[^/]+/)*", at + 3
        elif glob.startswith("**", at):
            out, at = out + ".+", at + 2
        elif glob[at] == "*":
            out, at = out + "[^/]*", at + 1
        elif glob[at] == "?":
            out, at = out + "[^/]", at + 1
        elif glob[at] == "[" and (close := glob.find("]", at + 2)) > 0:
            inner = glob[at + 1 : close].replace("\\", "\\\\").replace("[", "\\[")
            inner = "^" + inner[1:] if inner.startswith("!") else inner.replace("^", "\\^")
            out, at = f"{out}(?!/)[{inner}]", close + 1
        else:
            out, at = out + re.escape(glob[at]), at + 1
    try:
        return re.compile(out, re.DOTALL)
    except re.error:
        return re.compile(re.escape(glob))


class Finder:
    """Walks the work tree by descriptors, never through a link, and opens what the globs name."""

    def __init__(self, job: Bootstrap) -> None:
        self._job = job
        self.skipped: list[Skipped] = []
        self._count = self._total = 0

    def offers(self) -> Iterator[Offer]:
        """The declared files in the order of their names.  What is left out is in `skipped`, complete at the end."""
        if not self._job.globs:
            return
        try:
            top = os.open(self._job.work_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self.skip(self._job.work_dir, f"cannot be read: {error.strerror}")
            return
        try:
            for path in self._matches(top):
                if (offer := self._open(top, path)) is not None:
                    yield offer
        finally:
            os.close(top)

    def skip(self, name: str, reason: str) -> None:
        """Leave something out, saying why."""
        self.skipped.append(Skipped(name=printable(name), reason=printable(reason)))

    def _matches(self, top: int) -> list[str]:
        patterns = {glob: pattern(glob) for glob in self._job.globs}
        unmatched, found = dict(patterns), []
        for path in self._walk(top):
            hit = [glob for glob, each in patterns.items() if each.fullmatch(path)]
            if hit:
                found.append(path)
                for glob in hit:
                    unmatched.pop(glob, None)
        for glob in unmatched:
            self.skip(glob, "no file matches")
        return sorted(found)

    def _walk(self, top: int) -> Iterator[str]:
        """Every path below, directories included, `.git` left out."""
        seen, pending = 0, [""]
        while pending:
            below = pending.pop()
            directory = _open_below(top, below.rstrip("/"), os.O_DIRECTORY) if below else os.dup(top)
            if isinstance(directory, OSError):
                continue
            try:
                entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in os.scandir(directory)]
            finally:
                os.close(directory)
            for name, is_directory in entries:
                if name == ".git":
                    continue
                seen += 1
                if is_directory:
                    pending.append(f"{below}{name}/")
                yield f"{below}{name}"
            if seen > ENTRIES_MAX:
                self.skip("**", f"ENTRIES_MAX = {ENTRIES_MAX} is reached: further files were not looked at")
                return

    def _open(self, top: int, path: str) -> Offer | None:
        if (problem := name_problem(path)) is not None:
            self.skip(path, problem)
            return None
        file = _open_below(top, path, os.O_NONBLOCK)
        if isinstance(file, OSError):
            reason = KINDS[stat.S_IFLNK] if file.errno == errno.ELOOP else str(file.strerror)
            # Opening a socket or an absent device is ENXIO.
            self.skip(path, "not a regular file" if file.errno == errno.ENXIO else reason)
            return None
        status = os.fstat(file)
        refused = self._refusal(status)
        digest = None if refused else _digest(file, status.st_size)
        if digest is None:
            os.close(file)
            if refused != KINDS[stat.S_IFDIR] or path in self._job.globs:
                self.skip(path, refused or "it changed while it was read")
            return None
        self._count, self._total = self._count + 1, self._total + status.st_size
        return Offer(name=path, kind="file", file=file, bytes=status.st_size, digest=digest)

    def _refusal(self, status: os.stat_result) -> str | None:
        job, size = self._job, status.st_size
        if not stat.S_ISREG(status.st_mode):
            return KINDS.get(stat.S_IFMT(status.st_mode), "not a regular file")
        if job.file_bytes_max and size > job.file_bytes_max:
            return f"file_bytes_max = {job.file_bytes_max}: it has {size} bytes"
        if job.total_bytes_max and self._total + size > job.total_bytes_max:
            return f"total_bytes_max = {job.total_bytes_max} is reached: it has {size} bytes"
        if self._count >= job.count_max:
            return f"count_max = {job.count_max} is reached"
        return None


def offer_file(path: str, name: str, kind: str) -> Offer | None:
    """A file that we made ourselves, or None if it cannot be read."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    size = os.fstat(file).st_size
    digest = _digest(file, size)
    if digest is None:
        os.close(file)
        return None
    return Offer(name=name, kind=kind, file=file, bytes=size, digest=digest)


def name_problem(name: str) -> str | None:
    """Why a path may not name an artifact, or None if it may."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if length > NAME_BYTES_MAX:
        return f"its name is longer than {NAME_BYTES_MAX} bytes"
    if any(ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0 for letter in name):
        return "its name has control characters"
    if "\\" in name:
        return "its name has a backslash"
    return None


def _open_below(top: int, path: str, flags: int) -> int | OSError:
    """Open `path` component by component: no link, and nothing outside of `top`, can be reached."""
    *directories, last = path.split("/")
    at = os.dup(top)
    try:
        for name in directories:
            deeper = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = deeper
        return os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=at)
    except OSError as error:
        return error
    finally:
        os.close(at)


def _digest(file: int, size: int) -> str | None:
    """SHA-256 of the first `size` bytes; None if there are fewer or they cannot be read."""
    state, at = hashlib.sha256(), 0
    buffer = memoryview(bytearray(min(HASH_BYTES, max(size, 1))))
    try:
        while at < size:
            got = os.preadv(file, [buffer[: min(HASH_BYTES, size - at)]], at)
            if got == 0:
                return None
            state.update(buffer[:got])
            at += got
    except OSError:
        return None
    return state.hexdigest()
