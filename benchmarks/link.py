"""How much a guest brings over the control link: by TCP and TLS as from a cluster, by a Unix socket as its floor."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from harness import interleave, report

from agentlab.backends.link.channels import GuestStream
from agentlab.base.process import ended, start
from agentlab.testing.resident_process import ResidentProcess, dialled_process, resident_process

RUNS = 5
MIB = 1 << 20
SIZE_MIB = 256
SEND = """
import socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
data = bytes(1 << 20)
for _ in range(int(sys.argv[2])):
    link.sendall(data)
link.shutdown(socket.SHUT_WR)
link.recv(1)
"""


def main() -> None:
    """One line."""
    tls_s, unix_s = interleave(lambda: measured(dialled_process), lambda: measured(resident_process), RUNS)
    report(
        what="control link, 256 MiB from a program in the guest to the daemon, TLS over loopback; floor: a Unix socket",
        n=RUNS,
        p50_ms=tls_s * 1000,
        mib_per_s=SIZE_MIB / tls_s,
        floor_mib_per_s=SIZE_MIB / unix_s,
        ratio=tls_s / unix_s,
    )


def measured(kind: object) -> float:
    """Seconds from the sender's start to the daemon's last byte."""
    with tempfile.TemporaryDirectory(prefix="link", dir="/tmp") as folder:
        return uvloop.run(upload(kind, Path(folder)))


async def upload(kind: object, folder: Path) -> float:
    """Sent once, into nothing."""
    arrived, took = 0, 0.0

    async def swallow(stream: GuestStream) -> None:
        nonlocal arrived
        while data := await stream.read():
            arrived += len(data)
        stream.write([b"."])

    resident: ResidentProcess
    async with kind(folder) as resident:  # type: ignore[operator]
        await resident.connect(swallow)
        began = time.perf_counter()
        process = start([sys.executable, "-c", SEND, str(resident.link), str(SIZE_MIB)])
        async with asyncio.timeout(120):
            await ended(process)
        took = time.perf_counter() - began
    assert arrived == SIZE_MIB * MIB
    return took


if __name__ == "__main__":
    main()
