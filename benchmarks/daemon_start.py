"""From the start of `agentlabd` to its first answer, and what it then holds; over a bare server of the same libraries.

Ours: a daemon as root on a directory that it has used before, with its preflight (a container made and removed, rules
tried in a namespace), store, network and listeners, until GET /v1/status answers 200.  The floor: a Python process
that imports the same libraries (uvicorn, pydantic, apsw, uvloop) and answers a constant.  Bytecode is compiled, as
the installer leaves it.  Needs root.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from harness import percentile, report
from lab import need_root, resident_bytes_of, running_daemon

RUNS = 9
IDLE_S = 2.0
BARE = """
import sys, socket, apsw, click, pydantic, uvicorn, uvloop, yaml
class Model(pydantic.BaseModel):
    a: int
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, access_log=False)
uvicorn.Server(config).run(sockets=[listener])
"""


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("agentlab", timeout=30)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.fspath(self.path))


def until_served(path: Path, target: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        connection = _Unix(path)
        try:
            connection.request("GET", target)
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.002)
        finally:
            connection.close()
    raise RuntimeError(f"{process.args!r} ended with {process.returncode}")


def started(argv: list[str], path: Path, target: str) -> tuple[float, int]:
    """Milliseconds to the first answer, and the memory it holds a while later."""
    path.unlink(missing_ok=True)
    began = time.perf_counter()
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until_served(path, target, process)
        took_ms = (time.perf_counter() - began) * 1000
        time.sleep(IDLE_S)
        return took_ms, resident_bytes_of(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def main() -> None:
    need_root()
    with running_daemon() as daemon:
        daemon.stop()
        agentlabd = [sys.executable, "-m", "agentlab.daemon.main", "--dir", str(daemon.directory)]
        bare = daemon.directory / "bare.sock"
        ours, floor, held, bare_held = [], [], [], []
        for number in range(RUNS + 1):
            our_ms, our_bytes = started(agentlabd, daemon.socket, "/v1/status")
            bare_ms, bare_bytes = started([sys.executable, "-c", BARE, str(bare)], bare, "/")
            if number:
                ours.append(our_ms)
                floor.append(bare_ms)
                held.append(our_bytes)
                bare_held.append(bare_bytes)
    p50, bare_p50 = statistics.median(ours), statistics.median(floor)
    report(
        what="daemon: start to the first answer",
        n=RUNS,
        p50_ms=p50,
        p99_ms=percentile(ours, 99),
        ratio=p50 / bare_p50,
        floor_p50_ms=bare_p50,
        reach="p50 <= 600 ms",
    )
    mib, bare_mib = statistics.median(held) / (1 << 20), statistics.median(bare_held) / (1 << 20)
    what = "daemon: resident memory, idle"
    report(what=what, n=RUNS, mib=mib, ratio=mib / bare_mib, floor_mib=bare_mib, reach="<= 80 MiB")


if __name__ == "__main__":
    main()
