"""The way out of a network namespace that no host interface reaches: pasta, a program of the user's own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, ip_address
from pathlib import Path

from agentlab.base.clock import SystemClock, sleep
from agentlab.base.process import ProgramFailed, ended, run, start, which
from agentlab.base.text import one_line
from agentlab.network import host
from agentlab.network.interface import NetworkError

# Where pasta listens for questions that it puts to the host's own resolver.  Link-local: no sandbox may go there.
DNS_ADDRESS = "169.254.53.53"
INTERFACE = "outside"
TUN = Path("/dev/net/tun")
START_S_MAX = 20.0
OUTPUT_BYTES_MAX = 2000


class NoWayOut(Exception):
    """Pasta cannot be used here; the message says why, `remedy` what to do."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause)
        self.remedy = remedy


async def connect(holder: int, folder: Path, started: Callable[[int], object]) -> None:
    """Give the namespaces of the process `holder` a way out, made in the network that we are in now.

    `started` is told pasta's process id at once.  The host's own addresses and networks become routes there, so that
    the rules for sandboxes know them for what they are.  Raises NoWayOut; pasta has ended then.
    """
    program = which("pasta")
    if program is None:
        raise NoWayOut("pasta is not installed", "apt-get install passt")
    if not os.access(TUN, os.R_OK | os.W_OK):
        raise NoWayOut(f"{TUN} cannot be opened by this user", f"As root: modprobe tun; chmod 0666 {TUN}")
    said = os.memfd_create("pasta", os.MFD_CLOEXEC)
    try:
        networks = await _host_networks()
        child = start([program, *_options(holder)], stdout=said, stderr=said)
        try:
            started(child.pid)
            await _until_connected(holder, child.poll, said)
            await _furnish(holder, networks, folder)
        except BaseException:
            child.kill()
            await asyncio.shield(ended(child))
            raise
    except (ProgramFailed, NetworkError, OSError) as error:
        remedy = "See that the host has an IPv4 default route; then restart the daemon."
        raise NoWayOut(f"pasta gives no way out: {error}", remedy) from error
    finally:
        os.close(said)


async def _until_connected(holder: int, ended_with: Callable[[], int | None], said: int) -> None:
    clock = SystemClock()
    deadline = clock.monotonic() + START_S_MAX
    route = [*inside(holder, "--net"), which("ip") or "ip", "-4", "route", "show", "default", "dev", INTERFACE]
    while not (await run(route, timeout_s=START_S_MAX, check=False)).out:
        status = ended_with()
        if status is not None or clock.monotonic() > deadline:
            words = os.pread(said, OUTPUT_BYTES_MAX, 0).decode(errors="replace")
            raise ProgramFailed("pasta", status, one_line(words, 300))
        await sleep(0.01)


def _options(holder: int) -> list[str]:
    # No port is forwarded in either direction and the gateway's address is not the host: nothing that listens on the
    # host's loopback can be reached through it.
    closed = [word for option in ("-t", "-u", "-T", "-U") for word in (option, "none")]
    # In the foreground its process id is known from the first moment, and no file of ours needs to be open to it.
    quiet = ["--foreground", "--stderr", "--quiet", "--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra"]
    names = ["--ns-ifname", INTERFACE]
    if _resolver_on_loopback():
        # Only then: what the host's resolver answers seems to come from DNS_ADDRESS, also to who asked it directly.
        names += ["--dns-forward", DNS_ADDRESS]
    where = ["--userns", f"/proc/{holder}/ns/user", "--netns", f"/proc/{holder}/ns/net"]
    return [*quiet, "--ipv4-only", "--config-net", "--no-map-gw", *closed, *names, *where]


async def _host_networks() -> list[IPv4Network]:
    """Networks that the host is directly on, and its own addresses."""
    look, addresses = await asyncio.gather(host.look(""), host.own_addresses())
    return sorted({*look.on_link, *(IPv4Network(each) for each in addresses)})


async def _furnish(holder: int, networks: Sequence[IPv4Network], folder: Path) -> None:
    # `append` where the route is there already would be a second one of the same kind; `replace` changes nothing then.
    lines = "".join(f"route replace {each} dev {INTERFACE} scope link\n" for each in networks)
    await run([*inside(holder, "--net"), "ip", "-force", "-batch", "-"], stdin=lines.encode(), check=False)
    if _resolver_on_loopback():
        resolv_conf = folder / "resolv.conf"
        resolv_conf.write_text(f"nameserver {DNS_ADDRESS}\n")
        resolv_conf.chmod(0o644)
        await run([*inside(holder, "--mount"), "mount", "--bind", str(resolv_conf), str(host.RESOLV_CONF)])


def _resolver_on_loopback() -> bool:
    return any(ip_address(each.split("%")[0]).is_loopback for each in host.read_nameservers())


def inside(holder: int, *namespaces: str) -> list[str]:
    """The beginning of a command line that runs the rest as root of the holder's user namespace, in its others."""
    return [which("nsenter") or "nsenter", "--target", str(holder), "--user", *namespaces, "--"]
