"""What launched programs wrote, and what the machine's console shows of it."""

from __future__ import annotations

import os
import sys

CONSOLE_FILE = "/run/agentlab/console/log"
CONSOLE_BYTES_MAX = 1 << 20
REMARKS_MAX = 8


def open_console(path: str) -> int:
    """Where launched programs write: a small file, nowhere if somebody tampered with it."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        if os.fstat(descriptor).st_size > CONSOLE_BYTES_MAX // 2:
            os.ftruncate(descriptor, 0)  # a new program gets room; what the old ones wrote has been seen by now
    except OSError:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    return descriptor


def tell_console(text: str) -> None:
    """Write on the machine's console, which the host can read even when nobody answers."""
    try:
        descriptor = os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(descriptor, text.encode(errors="replace"))
    except OSError:
        return
    finally:
        os.close(descriptor)


def complain(text: str) -> None:
    """Say it on standard error, which is the machine's console from its first moment."""
    sys.stderr.write(f"agentlab-guest: {text}\n")
    sys.stderr.flush()


def tail(path: str, bytes_max: int) -> str:
    """The end of a file as text; empty if it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - bytes_max))
            return file.read(bytes_max).decode(errors="replace")
    except OSError:
        return ""


def kernel_remarks() -> str:
    """What the kernel said about running out of memory, the last lines of it."""
    found: list[str] = []
    try:
        descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        while record := os.read(descriptor, 8192):
            if b"Out of memory" in record or b"oom-kill:" in record:
                found.append(record.partition(b";")[2].partition(b"\n")[0].decode(errors="replace"))
    except OSError:
        pass  # EAGAIN: that was all; EPIPE: it was overwritten meanwhile
    finally:
        os.close(descriptor)
    return "".join(f"kernel: {line}\n" for line in found[-REMARKS_MAX:])
