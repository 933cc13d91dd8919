"""One gibibyte as an artifact of a job, from a real sandbox: how fast it arrives, and what the daemon holds meanwhile.

Ours: from the first byte that the daemon writes to the event that the artifact is durable, its digest checked, over
the guest link.  The floor: a bare Python pair on a Unix socket, of which one reads the file and sends, and the other
receives, hashes, writes and syncs.  Reading the file for its digest, which precedes the offer, is shown apart.
Needs root.
"""

from __future__ import annotations

import hashlib
import os
import socket
import statistics
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from harness import report
from lab import need_root, resident_bytes_of, running_daemon

from agentlab.client.sync import Connection
from agentlab.testing.daemon_process import DaemonProcess

TOTAL_BYTES = 1 << 30
CHUNK_BYTES = 256 << 10
RUNS = 3
SAMPLE_S = 0.005
FINAL = ("succeeded", "failed", "timed_out", "cancelled", "lost")
SEND = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as link, open(sys.argv[2], "rb", buffering=0) as file:
    link.connect(sys.argv[1])
    while chunk := file.read(int(sys.argv[3])):
        link.sendall(chunk)
"""


def ours(daemon: DaemonProcess, client: Connection) -> tuple[float, float, int]:
    """MiB/s over the link, seconds from the end of the agent to the durable artifact, and the daemon's growth."""
    # Each run has other bytes: what the daemon holds already is not sent again.
    task = f"head -c {TOTAL_BYTES} /dev/zero | tr '\\\\0' a > big; echo $RANDOM$RANDOM$RANDOM > nonce; cat nonce >> big"
    before, most, began_at = resident_bytes_of(daemon.pid), 0, 0.0
    job = client.call("jobs.create", task=f"{task}\n", agent="shell", artifact_globs=["big"], repo={})["id"]
    looked_at = 0.0
    partials = daemon.directory / "state" / "blobs" / "partial"
    while True:
        most = max(most, resident_bytes_of(daemon.pid))
        if not began_at and any(each.stat().st_size > CHUNK_BYTES for each in partials.iterdir()):
            began_at = time.time()
        if time.monotonic() - looked_at > 0.1:
            looked_at = time.monotonic()
            row = client.call("jobs.get", job=job)
            if row["state"] in FINAL:
                break
        time.sleep(SAMPLE_S)
    assert row["state"] == "succeeded", row
    facts = client.call("events.list", limit=500, subject=job)["items"]
    stored_at = next(at(each) for each in facts if each["type"] == "job.artifact" and each["data"]["name"] == "big")
    ended_at = next(at(each) for each in facts if each["data"].get("phase") == "collect")
    return TOTAL_BYTES / (1 << 20) / (stored_at - began_at), stored_at - ended_at, most - before


def at(fact: dict[str, str]) -> float:
    return datetime.fromisoformat(fact["at"]).timestamp()


def floor(folder: Path) -> float:
    name, source, target = folder / "floor.sock", folder / "source", folder / "target"
    with source.open("wb") as file:
        for _ in range(TOTAL_BYTES // (1 << 20)):
            file.write(b"a" * (1 << 20))
    with socket.socket(socket.AF_UNIX) as listener, target.open("wb", buffering=0) as file:
        listener.bind(str(name))
        listener.listen()
        argv = [sys.executable, "-c", SEND, str(name), str(source), str(CHUNK_BYTES)]
        sender = subprocess.Popen(argv)
        link, _ = listener.accept()
        digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
        began = time.perf_counter()
        with link:
            while count := link.recv_into(buffer):
                digest.update(buffer[:count])
                file.write(buffer[:count])
        os.fsync(file.fileno())
        took_s = time.perf_counter() - began
        sender.wait()
    for each in (name, source, target):
        each.unlink()
    return TOTAL_BYTES / (1 << 20) / took_s


def main() -> None:
    need_root()
    with running_daemon() as daemon, daemon.client() as client:
        rates, floors, collected, grown = [], [], [], []
        for _ in range(RUNS):
            rate, took_s, growth = ours(daemon, client)
            rates.append(rate)
            collected.append(took_s)
            grown.append(growth)
            floors.append(floor(daemon.directory))
    rate, bare = statistics.median(rates), statistics.median(floors)
    report(
        what="artifact of 1 GiB from a sandbox",
        n=RUNS,
        mib_per_s=rate,
        floor_mib_per_s=bare,
        ratio=bare / rate,
        collected_after_s=statistics.median(collected),
        daemon_growth_mib=max(grown) / (1 << 20),
        reach=">= 250 MiB/s, growth <= 16 MiB",
    )


if __name__ == "__main__":
    main()
