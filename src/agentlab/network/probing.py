"""Whether this machine can carry the network, finding by finding; changes nothing."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Network

from agentlab.base import process
from agentlab.model.finding import Finding
from agentlab.network import addresses, host, namespace, ruleset, sysctl
from agentlab.network.addresses import Taken
from agentlab.network.interface import NetworkError
from agentlab.network.nft import Nft
from agentlab.network.ruleset import Base

VERSION_TIMEOUT_S = 5.0


async def probe(nft: Nft, base: Base, configured: IPv4Network | None, upstreams: Sequence[str] | None) -> list[Finding]:
    """All findings, the fatal ones first."""
    findings = [*await asyncio.gather(_tool("nft", "nftables"), _tool("ip", "iproute2")), _privilege()]
    if not all(each.ok for each in findings):
        return findings
    look, chains = await asyncio.gather(host.look(addresses.bridge_name(base.installation)), host.chains())
    # The very rules that will be asked for if the subnet stays: they are then not tried twice.
    findings.append(await _rules(nft, replace(base, on_link=look.on_link)))
    findings.append(_subnet(look, configured))
    findings += [_closed(hook, chains, base) for hook in ("forward", "input")]
    return [*findings, _forwarding(), _names(upstreams)]


def clash_error(subnet: IPv4Network, clash: Taken) -> NetworkError:
    """A configured subnet that the host uses itself."""
    return NetworkError(
        f"the configured subnet {subnet} clashes with the host's {clash.what}",
        f"Configure another `network.subnet` (free private ranges are seldom far: "
        f"{', '.join(str(each) for each in addresses.CANDIDATE_SUBNETS[1:4])}), or leave it out to let one be chosen.",
    )


def no_subnet_error(clash: Taken) -> NetworkError:
    """No candidate is free."""
    tried = ", ".join(str(each) for each in addresses.CANDIDATE_SUBNETS)
    return NetworkError(
        f"no private subnet is free for the sandboxes: tried {tried}; the last clash is with {clash.what}",
        "Configure `network.subnet` with a range that the host does not use.",
    )


async def _tool(program: str, package: str) -> Finding:
    path = process.which(program)
    if path is None:
        return Finding(name=program, ok=False, detail=f"{program} is missing", remedy=f"apt-get install {package}")
    ended = await process.run((path, "-V"), timeout_s=VERSION_TIMEOUT_S, check=False)
    words = (ended.out or ended.err).decode(errors="replace").split("\n")[0]
    return Finding(name=program, ok=ended.status == 0, detail=words.strip() or path, remedy=f"Reinstall {package}.")


def _privilege() -> Finding:
    if namespace.may_configure():
        return Finding(name="network privilege", ok=True, detail="this process may configure its network namespace")
    return Finding(
        name="network privilege",
        ok=False,
        detail="this process may not configure the network it runs in (CAP_NET_ADMIN is missing)",
        remedy="Run agentlabd as root, or as fake root in a user namespace with its own network namespace.",
    )


async def _rules(nft: Nft, base: Base) -> Finding:
    try:
        await nft.canonical(ruleset.render(base))
    except NetworkError as error:
        return Finding(name="packet filter", ok=False, detail=error.cause, remedy=error.remedy)
    detail = f"the rule set loads on kernel {platform.release()}"
    return Finding(name="packet filter", ok=True, detail=detail)


def _subnet(look: host.Host, configured: IPv4Network | None) -> Finding:
    if configured is not None and (why := addresses.objection(configured)) is not None:
        return Finding(name="subnet", ok=False, detail=why, remedy="Configure another `network.subnet`.")
    wanted = configured or addresses.DEFAULT_SUBNET
    clash = addresses.first_clash(wanted, look.taken)
    if clash is None:
        return Finding(name="subnet", ok=True, detail=f"{wanted} is free")
    if configured is None and (other := addresses.free_subnet(look.taken)) is not None:
        return Finding(name="subnet", ok=True, detail=f"{other}, because {wanted} clashes with {clash.what}")
    error = clash_error(wanted, clash) if configured is not None else no_subnet_error(clash)
    return Finding(name="subnet", ok=False, detail=error.cause, remedy=error.remedy)


def _closed(hook: str, chains: str, base: Base) -> Finding:
    """Others' chains that drop by default stop sandboxes' traffic, and no rule of ours can overrule them."""
    bridge = addresses.bridge_name(base.installation)
    tables = host.parse_closed_chains(chains, hook, base.table)
    name = f"other filters ({hook})"
    if not tables:
        return Finding(name=name, ok=True, detail="no other table drops by default", fatal=False)
    what = "sandboxes have no internet" if hook == "forward" else "sandboxes resolve no names"
    chain = "DOCKER-USER" if hook == "forward" else "INPUT"
    commands = [f"iptables -I {chain} -i {bridge} -j ACCEPT"]
    if hook == "forward":
        commands.append(f"iptables -I {chain} -o {bridge} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT")
    return Finding(
        name=name,
        ok=False,
        detail=f"{', '.join(tables)} drops by default: {what} unless it lets {bridge} pass",
        remedy=f"Let it pass, for example: {'; '.join(commands)}.  (Without Docker the chain is {hook.upper()}.)",
        fatal=False,
    )


def _forwarding() -> Finding:
    if sysctl.read(sysctl.FORWARDING) == "1":
        return Finding(name="forwarding", ok=True, detail="the host routes already")
    detail = "off; turned on while AgentLab's network stands: the host then also routes between its other networks"
    return Finding(name="forwarding", ok=True, detail=detail)


def _names(upstreams: Sequence[str] | None) -> Finding:
    servers = list(upstreams) if upstreams is not None else host.read_nameservers()
    if servers:
        return Finding(name="name servers", ok=True, detail=", ".join(servers), fatal=False)
    return Finding(
        name="name servers",
        ok=False,
        detail=f"{host.RESOLV_CONF} names none: sandboxes resolve no names",
        remedy=f"Put a `nameserver` line into {host.RESOLV_CONF}.",
        fatal=False,
    )
