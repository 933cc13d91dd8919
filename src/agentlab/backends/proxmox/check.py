"""Whether the cluster has what sandboxes need: a real call for each question, and a remedy for each lack."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from agentlab.backends.interface import BackendError, Capability, Probe
from agentlab.backends.proxmox import lenient
from agentlab.backends.proxmox.cluster import Cluster
from agentlab.backends.proxmox.observe import ClusterView
from agentlab.backends.proxmox.placement import LINKED_CLONE_TYPES
from agentlab.backends.proxmox.privileges import VERSIONS, lacking
from agentlab.model.finding import Finding

LOOK_S_MAX = 20.0  # of a daemon's start, for a cluster that does not answer
GUARANTEES = (
    "The firewall of a cluster works with up to 10 s delay; until a sandbox's walls hold, nothing but its template's "
    "own programs runs in it.",
    "A node shares equal pages of memory between VMs (KSM) unless its administrator has switched that off.",
)


async def look(cluster: Cluster, offered: frozenset[Capability]) -> Probe:
    """Ask the cluster.  Usable if every fatal question has a good answer."""
    try:
        async with asyncio.timeout(LOOK_S_MAX):
            findings, facts = await _asked(cluster)
    except BackendError as error:
        findings, facts = [_bad("cluster", error.cause, error.remedy)], {}
    except TimeoutError:
        cause = f"the cluster did not answer within {LOOK_S_MAX:g} s"
        findings, facts = [_bad("cluster", cause, "See whether its nodes are up.")], {}
    usable = all(each.ok or not each.fatal for each in findings)
    return Probe(
        findings=tuple(findings),
        capabilities=offered if usable else frozenset(),
        missing_guarantees=GUARANTEES if usable else (),
        facts=facts,
    )


async def _asked(cluster: Cluster) -> tuple[list[Finding], dict[str, str]]:
    version = lenient.row(await cluster.call("asking for the version", "GET", "/version"))
    shown = lenient.text(version, "version")
    major = int(shown.split(".")[0]) if shown.split(".")[0].isdigit() else 0
    findings = [_good("cluster", f"Proxmox VE {shown}, the token is accepted")]
    if major < VERSIONS[0]:
        findings.append(_bad("version", f"{shown} is not supported", f"Proxmox VE {VERSIONS[0]} or newer is needed."))
        return findings, {"version": shown}
    cluster.grantee = replace(cluster.grantee, version=major)
    permissions = lenient.row(await cluster.call("asking for our rights", "GET", "/access/permissions"))
    findings += _rights(cluster, permissions)
    view = await cluster.look()
    findings += [*_nodes(view), *_storages(cluster, view), await _firewall(cluster)]
    return findings, {"version": shown, "nodes": ", ".join(sorted(view.nodes))}


def _rights(cluster: Cluster, permissions: lenient.Row) -> list[Finding]:
    """A row for each privilege that is not held, with the command that grants it."""
    lacks = lacking(permissions, cluster.grantee)
    if not lacks:
        return [_good("rights", "the token has all that it needs, and was asked for each")]
    return [
        Finding(
            name=f"right {each.privilege.name}",
            ok=False,
            fatal=each.privilege.essential(cluster.grantee),
            detail=f"missing on {each.path}, needed for {each.privilege.needed_for}",
            remedy=f"As root on a node: {each.command}",
        )
        for each in lacks
    ]


def _nodes(view: ClusterView) -> list[Finding]:
    online = sorted(node.name for node in view.nodes.values() if node.online)
    away = sorted(node.name for node in view.nodes.values() if not node.online)
    if not online:
        return [_bad("nodes", "none is online", "Bring a node up.")]
    detail = f"online: {', '.join(online)}" + (f"; away: {', '.join(away)}" if away else "")
    return [_good("nodes", detail)]


def _storages(cluster: Cluster, view: ClusterView) -> Sequence[Finding]:
    plan, found = cluster.plan, []
    disks = [each for each in view.storages.values() if each.name == plan.storage]
    if not disks:
        remedy = "Correct `backends.proxmox.storage`, or grant the token Datastore.Audit on it."
        found.append(_bad("storage", f"{plan.storage} is not to be seen", remedy))
    elif not any("images" in each.content for each in disks):
        remedy = f"As root on a node: pvesm set {plan.storage} --content images,…"
        found.append(_bad("storage", f"{plan.storage} does not take disks of VMs", remedy))
    elif not any(each.type in LINKED_CLONE_TYPES for each in disks):
        detail = f"{plan.storage} ({disks[0].type}) makes whole copies, which take long"
        found.append(Finding(name="storage", ok=False, fatal=False, detail=detail, remedy="Use a thin storage."))
    else:
        found.append(_good("storage", f"{plan.storage} ({disks[0].type})"))
    uploads = [each for each in view.storages.values() if each.name == plan.uploads]
    if not plan.templates and not any("import" in each.content for each in uploads):
        detail = f"{plan.uploads} does not take images (content `import`)"
        remedy = f"As root on a node: pvesm set {plan.uploads} --content import,…"
        found.append(Finding(name="uploads", ok=False, fatal=False, detail=detail, remedy=remedy))
    return found


async def _firewall(cluster: Cluster) -> Finding:
    """Whether the datacenter's firewall is on.  To see it takes a right that is not asked for."""
    try:
        options = lenient.row(await cluster.call("looking at the firewall", "GET", "/cluster/firewall/options"))
    except BackendError:
        detail = "not visible to the token; each sandbox tries its walls from inside before it is ready"
        return Finding(name="datacenter firewall", ok=True, fatal=False, detail=detail)
    if lenient.truth(options, "enable"):
        return _good("datacenter firewall", "enabled")
    remedy = "Enable it: Datacenter → Firewall → Options → Firewall.  Allow your own access to ports 8006 and 22 first."
    return _bad("datacenter firewall", "it is off, so that no sandbox would have walls", remedy)


def _good(name: str, detail: str) -> Finding:
    return Finding(name=name, ok=True, detail=detail)


def _bad(name: str, detail: str, remedy: str) -> Finding:
    return Finding(name=name, ok=False, detail=detail, remedy=remedy)
