"""CPU time of the CLI with compiled bytecode: `--version` at most 80 ms, `sandbox list --json` at most 150 ms.

The floor is the interpreter that does nothing.
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import report

from agentlab.testing.served import serving

RUNS = 15


def _cpu_ms(argv: list[str], env: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, env=env, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


def _measure(socket: Path, compiled: Path) -> None:
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(compiled), "AGENTLAB_SOCKET": str(socket)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    program = [sys.executable, "-c", "import sys; from agentlab.cli.main import main; sys.exit(main())"]
    cases = {"--version": (["--version"], 80), "sandbox list --json": (["sandbox", "list", "--json"], 150)}
    for _ in range(2):  # the first compiles
        for arguments, _limit in cases.values():
            _cpu_ms([*program, *arguments], env)
    floors: list[float] = []
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(RUNS):
        floors.append(_cpu_ms([sys.executable, "-c", "pass"], env))
        for name, (arguments, _limit) in cases.items():
            found[name].append(_cpu_ms([*program, *arguments], env))
    floor = statistics.median(floors)
    for name, (_arguments, limit) in cases.items():
        cpu = statistics.median(found[name])
        report(
            what=f"CLI: CPU time of {name}", n=RUNS, p50_ms=cpu, floor_ms=floor, ratio=cpu / floor,
            reach=f"{limit} ms", reached=cpu <= limit,
        )  # fmt: skip


async def _main() -> None:
    with tempfile.TemporaryDirectory(prefix="agentlab-bench-") as folder:
        async with serving(Path(folder) / "d", reconcile=False) as served:
            for _ in range(10):
                await served.json("POST", "/v1/sandboxes", {})
            await asyncio.to_thread(_measure, served.socket, Path(folder) / "compiled")


if __name__ == "__main__":
    asyncio.run(_main())
