"""One gibibyte received into a blob: hashed, written and synced, over a bare loop that does the same."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from harness import interleave, report, resident_bytes

from agentlab.base.clock import SystemClock
from agentlab.base.entropy import SystemEntropy
from agentlab.store.blobs import Blobs

TOTAL_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20
RUNS = 3

chunk = os.urandom(CHUNK_BYTES)
grown_bytes: list[int] = []


def ours() -> float:
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        blobs = Blobs(folder, SystemClock(), SystemEntropy(), disk_reserve_bytes=0)
        before, most = resident_bytes(), 0
        began = time.perf_counter()
        upload = blobs.begin(TOTAL_BYTES)
        for _ in range(TOTAL_BYTES // CHUNK_BYTES):
            upload.write(chunk)
            most = max(most, resident_bytes())
        upload.finish(None)
        grown_bytes.append(most - before)
        return TOTAL_BYTES / (time.perf_counter() - began) / (1 << 20)
    finally:
        shutil.rmtree(folder)


def floor() -> float:
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        began = time.perf_counter()
        digest = hashlib.sha256()
        with (folder / "file").open("wb", buffering=0) as file:
            for _ in range(TOTAL_BYTES // CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
            os.fsync(file.fileno())
        return TOTAL_BYTES / (time.perf_counter() - began) / (1 << 20)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    mib_per_s, floor_mib_per_s = interleave(ours, floor, RUNS)
    report(
        what="1 GiB received into a blob",
        n=RUNS,
        mib_per_s=mib_per_s,
        floor_mib_per_s=floor_mib_per_s,
        ratio=floor_mib_per_s / mib_per_s,
        memory_growth_bytes=max(grown_bytes),
    )


if __name__ == "__main__":
    main()
