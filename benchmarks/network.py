"""Attaching and detaching one port, over what a script with the same end would run.

Attach: rules, the pair of links, what lies inside the namespace, and reading it all back.  Its floor is three bare
programs (`nft`, `ip`, `ip` inside the namespace) that set up the same without checking anything; for a tap, which is
there already, two (`nft`, `ip`).  Detach: link and rules; its floor is `ip` and `nft`.  Needs root; everything happens
in network namespaces of its own.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import uvloop
from harness import percentile, report

from agentlab.base.clock import SystemClock
from agentlab.model.network import LinkEnd, Namespace, NetworkMode, Port, Tap
from agentlab.network import addresses, ruleset
from agentlab.network.bridge import BridgeNetwork
from agentlab.testing.netlab import NetLab
from agentlab.testing.taps import HeldTap

INSTALLATION = "bench234"
RUNS = 60


def run(*argv: str, given: str) -> None:
    subprocess.run(argv, input=given.encode(), check=True, capture_output=True)


def bare_attach(base: ruleset.Base, port: Port, pid: int) -> None:
    run("nft", "-f", "-", given=ruleset.add_port(base, port))
    pair = f"link add {port.link} type veth peer name eth0 address {port.mac} netns {pid}\n"
    run("ip", "-batch", "-", given=f"{pair}link set {port.link} master al{INSTALLATION} up\n")
    inside = f"link set lo up\naddr add {port.address}/16 dev eth0\nlink set eth0 up\n"
    command = ("nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-batch", "-")
    run(*command, given=f"{inside}route add default via {port.gateway}\n")


def bare_detach(base: ruleset.Base, port: Port) -> None:
    run("ip", "link", "del", port.link, given="")
    run("nft", "-f", "-", given=ruleset.remove_port(base, port))


def bare_attach_tap(base: ruleset.Base, port: Port) -> None:
    run("nft", "-f", "-", given=ruleset.add_port(base, port))
    join = f"link set {port.link} master al{INSTALLATION}\nlink set {port.link} type bridge_slave isolated on\n"
    run("ip", "-batch", "-", given=f"{join}link set {port.link} up\n")


def bare_detach_tap(base: ruleset.Base, port: Port) -> None:
    run("ip", "link", "set", port.link, "nomaster", "down", given="")
    run("nft", "-f", "-", given=ruleset.remove_port(base, port))


async def opened(lab: NetLab, folder: str) -> BridgeNetwork:
    with lab.on_host():
        network = BridgeNetwork(INSTALLATION, Path(folder), None, SystemClock(), [NetLab.NAME_SERVER])
        await network.open()
        return network


Side = tuple[NetLab, BridgeNetwork]


async def measure(times: dict[str, list[float]], ours: Side, bare: Side) -> None:
    base = ruleset.Base(installation=INSTALLATION, subnet=addresses.DEFAULT_SUBNET)
    for number in range(RUNS + 1):
        port = ours[1].port(f"sb-{number}", 1, NetworkMode.NAT)
        marks = [*await with_namespaces(base, port, ours, bare), *await with_taps(base, port, ours, bare)]
        if number:  # the first of each is not counted
            for name, taken in zip(times, marks, strict=True):
                times[name].append(taken * 1000)
    for lab, network in (ours, bare):
        with lab.on_host():
            await network.close(remove=True)


async def with_namespaces(base: ruleset.Base, port: Port, ours: Side, bare: Side) -> list[float]:
    end, pid = Namespace((await ours[0].new_sandbox()).pid), (await bare[0].new_sandbox()).pid
    taken = await timed(ours, port, end)
    with bare[0].on_host():
        begun = time.perf_counter()
        bare_attach(base, port, pid)
        attached = time.perf_counter()
        bare_detach(base, port)
        return [*taken, attached - begun, time.perf_counter() - attached]


async def with_taps(base: ruleset.Base, port: Port, ours: Side, bare: Side) -> list[float]:
    with ours[0].on_host():
        tap = HeldTap(port.link)
    with bare[0].on_host():
        other = HeldTap(port.link)
    taken = await timed(ours, port, Tap(tap.index))
    with bare[0].on_host():
        begun = time.perf_counter()
        bare_attach_tap(base, port)
        attached = time.perf_counter()
        bare_detach_tap(base, port)
        floors = [attached - begun, time.perf_counter() - attached]
    tap.close()
    other.close()
    return [*taken, *floors]


async def timed(side: Side, port: Port, end: LinkEnd) -> list[float]:
    lab, network = side
    with lab.on_host():
        begun = time.perf_counter()
        await network.attach(port, end)
        attached = time.perf_counter()
        await network.detach(port.sandbox)
        return [attached - begun, time.perf_counter() - attached]


async def main() -> None:
    kinds = ("one port", "one tap")
    names = [f"{name} {kind}{floor}" for kind in kinds for floor in ("", " floor") for name in ("attach", "detach")]
    times: dict[str, list[float]] = {name: [] for name in names}
    # Two hosts, because another program's rules on the same one make every attach read everything anew.
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        async with NetLab() as lab, NetLab() as bare:
            await measure(times, (lab, await opened(lab, one)), (bare, await opened(bare, two)))
    for name in (f"{each} {kind}" for kind in kinds for each in ("attach", "detach")):
        p50, floor = statistics.median(times[name]), statistics.median(times[f"{name} floor"])
        p99 = percentile(times[name], 99)
        report(what=f"network: {name}", n=RUNS, p50_ms=p50, p99_ms=p99, floor_p50_ms=floor, ratio=p50 / floor)


if __name__ == "__main__":
    uvloop.run(main())
