"""What all measurements share: each prints one JSON line, and each is compared with its floor in the same run."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def report(**fields: object) -> None:
    """Print one JSON line: the fields, floats to four digits, then the machine and the commit that was measured."""
    line = {name: _short(value) for name, value in fields.items()}
    print(json.dumps({**line, "machine": machine(), "commit": commit()}), flush=True)


def interleave(a: Callable[[], float], b: Callable[[], float], n: int) -> tuple[float, float]:
    """The medians of `n` runs of `a` and of `b`, which take turns so that a busy machine disturbs both alike.

    One run of each before that is not counted.
    """
    a(), b()
    pairs = [(a(), b()) for _ in range(n)]
    return statistics.median(first for first, _ in pairs), statistics.median(second for _, second in pairs)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def resident_bytes() -> int:
    """The memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def machine() -> str:
    """Processor, cores and kernel."""
    names = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    processor = names[0] if names else platform.machine()
    return f"{processor} x{os.cpu_count()}, Linux {platform.release()}, Python {platform.python_version()}"


def commit() -> str:
    """The commit of this work tree, with a + if it has changes."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False).stdout

    return (git("rev-parse", "--short", "HEAD").strip() or "unknown") + ("+" if git("status", "--porcelain") else "")


def _short(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value
