"""From a request for a sandbox to the end of a first command in it, over the runtime alone with the same bundle.

Ours: POST /v1/sandboxes, then POST exec of `true`, on one kept Unix socket connection, with the default profile: own
disk, own user namespace, bridge, policy applied and read back, every step recorded durably.  The floor: the runtime's
create, start and exec, called directly, with the configuration that the daemon wrote, the same layers and mounts, a
disk image that lies ready, and no network.  Then the round trip of one exec alone, and a burst of creations.
Needs root.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness import percentile, report
from lab import configuration_of, need_root, run, running_daemon, sandbox_gone, template_layers

from agentlab.backends import cgroup
from agentlab.backends.oci import disk
from agentlab.backends.oci.bundle import hosts
from agentlab.backends.oci.stage import Parts, assemble
from agentlab.backends.oci.syscalls import mount, unshare_mounts
from agentlab.backends.oci.userns import UidRange, UserNamespaces
from agentlab.base.process import which
from agentlab.client.sync import Connection
from agentlab.testing.daemon_process import DaemonProcess

RUNS = 40
EXECS = 60
BURST = 50
STARTUP_TRIES_MAX = 50
SMALL: dict[str, Any] = {"memory_bytes": 128 << 20, "pids_max": 64}


class Bare:
    """The runtime and nothing else; its mounts are those of the thread that calls."""

    def __init__(self, daemon: DaemonProcess, sandbox: str, layers: tuple[Path, ...]) -> None:
        self.program = which("crun") or which("runc") or "crun"
        self.folder = daemon.directory / "bare"
        self.root = self.folder / "runtime"
        self.root.mkdir(parents=True)
        self.cgroups = cgroup.detect(Path("/proc/self/mountinfo").read_text())
        self.configuration = configuration_of(daemon, sandbox)
        self.daemon_group = f"/bare-{daemon.pid}"
        self.layers, self.count = layers, 0
        mapping = self.configuration["linux"]["uidMappings"][0]
        self.uids = UidRange(first=mapping["hostID"], length=mapping["size"])
        self.userns = asyncio.run(UserNamespaces().borrow(self.uids))
        self.guest = daemon.directory / "run" / "guest"
        self.blank = next((daemon.directory / "state" / "oci" / "blank").iterdir())

    def prepare(self) -> str:
        """A bundle and a disk for a new container; its name."""
        self.count += 1
        name = f"bare-{self.count}"
        bundle = self.folder / name
        bundle.mkdir()
        disk.clone(self.blank, bundle / "disk.img")
        self.configuration["linux"]["cgroupsPath"] = f"{self.daemon_group}/{name}"
        (bundle / "config.json").write_text(json.dumps(self.configuration))
        return name

    def alone(self) -> None:
        """Give the calling thread mounts of its own, in which crun finds what it accepts."""
        unshare_mounts()
        if self.cgroups.hybrid is not None:
            mount("tmpfs", str(self.cgroups.hybrid), "tmpfs", 0, "mode=755,size=4k")

    def begin(self, name: str) -> None:
        """create and start"""
        self.alone()
        bundle = self.folder / name
        init = which("catatonit") or which("tini") or ""
        parts = Parts(
            stage=self.configuration["root"]["path"].removesuffix("/root"),
            layers=self.layers,
            disk=bundle / "disk.img",
            uids=self.uids,
            userns=self.userns,
            nested=False,
            init=Path(init),
            guest=self.guest,
            etc={"hosts": hosts("bare"), "hostname": "bare\n", "resolv.conf": ""},
        )
        assemble(parts)
        self.call("create", "--bundle", str(bundle), name)
        self.call("start", name)

    def execute(self, name: str) -> None:
        """exec of `true`, again where crun says that the container's first process has not begun yet."""
        for _ in range(STARTUP_TRIES_MAX):
            try:
                return self.call("exec", name, "true")
            except RuntimeError as error:
                if "fail startup" not in str(error):
                    raise
        raise RuntimeError(f"{name} does not begin")

    def first_command(self, name: str) -> None:
        """create, start and exec"""
        self.begin(name)
        self.execute(name)

    def end(self, name: str) -> None:
        """Kill it and forget it."""
        self.call("delete", "--force", name)
        for group in (f"{self.daemon_group}/{name}", self.daemon_group):
            self.cgroups.remove_if_empty(group)

    def call(self, *arguments: str) -> None:
        """The runtime, to the end of its call."""
        run([self.program, "--root", str(self.root), *arguments])


def timed_ms(work: Any, *arguments: Any) -> float:
    began = time.perf_counter()
    work(*arguments)
    return (time.perf_counter() - began) * 1000


def bare_first_command(bare: Bare) -> float:
    """In a fresh thread, as the daemon does it: the mounts end with the container."""
    name = bare.prepare()
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            return thread.submit(timed_ms, bare.first_command, name).result()
        finally:
            thread.submit(bare.end, name).result()


def our_first_command(client: Connection) -> tuple[float, str]:
    began = time.perf_counter()
    sandbox = client.call("sandboxes.create")["id"]
    done = client.call("sandboxes.execute", sandbox=sandbox, argv=["true"])
    took_ms = (time.perf_counter() - began) * 1000
    assert done["exit_code"] == 0, done
    return took_ms, sandbox


def first_commands(client: Connection, bare: Bare) -> None:
    ours, floor = [], []
    for number in range(RUNS + 2):
        took_ms, sandbox = our_first_command(client)
        sandbox_gone(client, sandbox)
        bare_ms = bare_first_command(bare)
        if number >= 2:
            ours.append(took_ms)
            floor.append(bare_ms)
    show("sandbox: create to the end of a first exec", ours, floor, reach="ratio <= 1.5, p50 <= 100 ms")


def execs(client: Connection, bare: Bare, sandbox: str) -> None:
    name = bare.prepare()
    ours, floor = [], []
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            thread.submit(bare.begin, name).result()
            for number in range(EXECS + 2):
                ours_ms = timed_ms(lambda: client.call("sandboxes.execute", sandbox=sandbox, argv=["true"]))
                bare_ms = thread.submit(timed_ms, bare.execute, name).result()
                if number >= 2:
                    ours.append(ours_ms)
                    floor.append(bare_ms)
        finally:
            thread.submit(bare.end, name).result()
    show("sandbox: round trip of one exec", ours, floor, reach="ratio <= 1.5")


def burst(daemon: DaemonProcess) -> None:
    def one(_: int) -> tuple[float, str]:
        with daemon.client() as client:
            began = time.perf_counter()
            sandbox = client.call("sandboxes.create", **SMALL)["id"]
            done = client.call("sandboxes.execute", sandbox=sandbox, argv=["true"], timeout_s=60)
            assert done["exit_code"] == 0, done
            return (time.perf_counter() - began) * 1000, sandbox

    began = time.perf_counter()
    with ThreadPoolExecutor(max_workers=BURST) as threads:
        outcomes = [future.exception() or future.result() for future in [threads.submit(one, n) for n in range(BURST)]]
    took_s = time.perf_counter() - began
    good = [each for each in outcomes if isinstance(each, tuple)]
    failures = sorted({str(each) for each in outcomes if not isinstance(each, tuple)})
    took_ms = [each[0] for each in good] or [0.0]
    report(
        what="sandbox: burst of creations with an exec each, all at once",
        n=BURST,
        succeeded=len(good),
        failures=failures,
        p50_ms=statistics.median(took_ms),
        p99_ms=percentile(took_ms, 99),
        took_s=took_s,
        reach="all succeed",
    )


def show(what: str, ours: list[float], floor: list[float], reach: str) -> None:
    p50, bare = statistics.median(ours), statistics.median(floor)
    p99 = percentile(ours, 99)
    report(what=what, n=len(ours), p50_ms=p50, p99_ms=p99, ratio=p50 / bare, floor_p50_ms=bare, reach=reach)


def main() -> None:
    need_root()
    with running_daemon() as daemon, daemon.client() as client:
        _, sandbox = our_first_command(client)
        digest = client.call("sandboxes.get", sandbox=sandbox)["template_digest"]
        bare = Bare(daemon, sandbox, template_layers(daemon, digest))
        first_commands(client, bare)
        execs(client, bare, sandbox)
        burst(daemon)


if __name__ == "__main__":
    main()
