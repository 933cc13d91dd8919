"""A host in a lab on which `agentlab setup host-network` runs as on a real one; it writes to an /etc of the test."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentlab.base import process
from agentlab.testing.netlab import NetLab, Place

SUBNET = "10.80.0.0/24"
GATEWAY = "10.80.0.1"
BRIDGE = "agbr0"
GUESTS = ("10.80.0.11", "10.80.0.12")
SERVED_PORTS = (8811, 3128, 111)  # beside those of the lab: the guest port, and two of Proxmox VE's
INTERFACES = "auto lo\niface lo inet loopback\n\nsource /etc/network/interfaces.d/*\n"
RUN_S_MAX = 60.0
_INSIDE = f"""\
link set lo up
addr add {{address}}/24 dev eth0
link set eth0 up
route add default via {GATEWAY} dev eth0 onlink
"""
_FIREWALLED = """\
link add fwbr{vmid}i0 type bridge
link add tap{vmid}i0 type veth peer name eth0 netns {pid}
link add fwln{vmid}i0 type veth peer name fwpr{vmid}p0
link set tap{vmid}i0 master fwbr{vmid}i0 up
link set fwln{vmid}i0 master fwbr{vmid}i0 up
link set fwpr{vmid}p0 master {bridge} up
link set fwbr{vmid}i0 up
"""
_LINK_FACTS = ("ifname", "address", "mtu", "flags", "ifalias", "master", "qdisc")
_SETTINGS = r"^net\.(ipv4|ipv6)\.(conf\.|ip_forward)"

# In a mount namespace of its own: what is written to /etc lands in the test's folder, and no systemd is to be seen.
_PRIVATE = """
set -e
mount -t overlay -o lowerdir=/etc,upperdir="$1/etc",workdir="$1/work" overlay /etc
if [ -d /run/systemd ]; then mount -t tmpfs tmpfs /run/systemd; fi
shift
exec "$@"
"""
_SERVE = """
import asyncio, sys
async def greet(reader, writer):
    writer.write(b"%s\\n" % writer.get_extra_info("peername")[0].encode())
    await writer.drain()
    writer.close()
async def main():
    for port in map(int, sys.argv[1:]):
        await asyncio.start_server(greet, "0.0.0.0", port)
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """How a run of the program ended."""

    status: int
    out: str
    err: str

    @property
    def value(self) -> dict[str, Any]:
        """What it printed with --json."""
        found: dict[str, Any] = json.loads(self.out)
        return found


@dataclass(frozen=True, kw_only=True)
class HostRig:
    """A host with a default route by `up0`, and an internet, a LAN and a tailnet around it."""

    lab: NetLab
    folder: Path
    undo: AsyncExitStack

    @property
    def etc(self) -> Path:
        """What was written to /etc."""
        return self.folder / "etc"

    async def setup(self, *words: str) -> Said:
        """`agentlab setup host-network …` on the host."""
        program = (sys.executable, "-m", "agentlab.cli.main", "setup", "host-network", *words)
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        argv = ("ip", "netns", "exec", self.lab.host_name, "unshare", "--mount", "--propagation", "private", "--")
        shell = ("sh", "-c", _PRIVATE, "sh", str(self.folder))
        ended = await process.run(
            (*argv, *shell, *program), timeout_s=RUN_S_MAX, check=False, env={**os.environ, "PATH": path}
        )
        return Said(status=ended.status, out=ended.out.decode(), err=ended.err.decode())

    async def made(self, *words: str) -> Said:
        """The same with --yes, which has to succeed."""
        said = await self.setup("--yes", *words)
        assert said.status == 0, said.err
        return said

    async def on_host(self, *argv: str, stdin: str = "") -> str:
        """What a program prints that runs on the host."""
        return await self.lab.on(self.lab.host, *argv, stdin=stdin)

    async def plug(self, address: str, name: str) -> Place:
        """A guest on the bridge, as a VM is plugged: nobody has bound it to its address."""
        guest = await self.lab.new_sandbox()
        await self.on_host("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(guest.pid))
        await self.on_host("ip", "link", "set", name, "master", BRIDGE, "up")
        await self.lab.on(guest, "ip", "-batch", "-", stdin=_INSIDE.format(address=address))
        return guest

    async def plug_with_firewall(self, address: str, vmid: int) -> Place:
        """The same as Proxmox VE does it for a VM with a firewall: a bridge of its own lies between."""
        await self.on_host("sysctl", "-q", "-e", "-w", "net.bridge.bridge-nf-call-iptables=1")
        guest = await self.lab.new_sandbox()
        await self.on_host("ip", "-batch", "-", stdin=_FIREWALLED.format(vmid=vmid, pid=guest.pid, bridge=BRIDGE))
        await self.lab.on(guest, "ip", "-batch", "-", stdin=_INSIDE.format(address=address))
        return guest

    async def unplug(self, name: str) -> None:
        """The guest's port is gone."""
        await self.on_host("ip", "link", "del", name)

    async def serve(self, place: Place, *ports: int) -> None:
        """Answer at these ports with the asker's address."""
        words = ("nsenter", f"--net=/proc/{place.pid}/ns/net", "--", sys.executable, "-c", _SERVE)
        server = await process.spawn((*words, *map(str, ports)), stdout=asyncio.subprocess.PIPE)
        self.undo.push_async_callback(_end, server)
        assert server.stdout is not None
        assert await server.stdout.readline() == b"ready\n"

    async def without_rules(self) -> None:
        """The same host with everything open: what a control needs."""
        await self.on_host("nft", "flush", "ruleset")

    async def facts(self) -> dict[str, object]:
        """All that the host's kernel holds and that could be changed by us."""
        links = json.loads(await self.on_host("ip", "-j", "-d", "link"))
        return {
            "rules": await self.on_host("nft", "--stateless", "list", "ruleset"),
            "links": [{key: each.get(key) for key in _LINK_FACTS} for each in links],
            "addresses": await self.on_host("ip", "-4", "-o", "addr"),
            "routes": await self.on_host("ip", "-4", "route", "show", "table", "all"),
            "routing": await self.on_host("ip", "rule"),
            "settings": await self.on_host("sysctl", "-a", "-e", "--pattern", _SETTINGS),
        }

    def written(self) -> list[str]:
        """The files that were written to /etc."""
        found = (each for each in self.etc.rglob("*") if not each.is_dir() or each.is_symlink())
        return sorted(str(each.relative_to(self.etc)) for each in found)


@asynccontextmanager
async def host_rig(folder: Path) -> AsyncIterator[HostRig]:
    """A lab whose host has ifupdown2's programs, as far as anybody looks."""
    for name in ("etc/network", "work", "bin"):
        (folder / name).mkdir(parents=True)
    (folder / "etc/network/interfaces").write_text(INTERFACES)
    (folder / "bin/ifreload").write_text("#!/bin/sh\nexit 1\n")
    (folder / "bin/ifreload").chmod(0o755)
    async with NetLab() as lab, AsyncExitStack() as undo:
        rig = HostRig(lab=lab, folder=folder, undo=undo)
        await rig.serve(lab.host, *SERVED_PORTS)
        await lab.on(lab.host, "sysctl", "-q", "-w", "net.ipv4.ip_forward=0")
        # So that what is not filtered does get an answer.
        await lab.on(lab.world, "ip", "route", "add", SUBNET, "via", "192.168.50.2")
        yield rig


async def _end(started: asyncio.subprocess.Process) -> None:
    if started.returncode is None:
        started.kill()
    await started.wait()
