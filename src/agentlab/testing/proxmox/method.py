"""The shape of a method of the API: verb, path, parameters, who may, what it does."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agentlab.testing.proxmox.access import Caller
from agentlab.testing.proxmox.cluster import Cluster
from agentlab.testing.proxmox.faults import Fault
from agentlab.testing.proxmox.formats import NODE, VMID
from agentlab.testing.proxmox.kinds import Kind, need
from agentlab.testing.proxmox.refusal import denied
from agentlab.testing.proxmox.state import Firewall, Vm
from agentlab.testing.proxmox.tasks import Work

ACL_CHARACTERS = re.compile(r"[A-Za-z0-9.\-_/]+")
VM = "/nodes/{node}/qemu/{vmid}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Data with further keys beside it, such as `total`."""

    data: Any
    beside: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A file that came along; `body` is good until the call has ended."""

    filename: str
    body: memoryview


@dataclass(slots=True, kw_only=True)
class Call:
    """One call that passed its checks."""

    cluster: Cluster
    caller: Caller
    values: dict[str, Any]
    node: str
    fault: Fault | None = None
    upload: Upload | None = None

    @property
    def vmid(self) -> int:
        """The VM that the path names."""
        return int(self.values["vmid"])

    def vm(self) -> Vm:
        """That VM.  Raises Refused if it is not on this node."""
        return self.cluster.vm_on(self.node, self.vmid)

    def firewall(self) -> Firewall:
        """The rules that the path is about: of its VM, or of the datacenter."""
        return self.vm().firewall if "vmid" in self.values else self.cluster.firewall

    def has(self, path: str, *privileges: str) -> bool:
        """Whether the caller has one of the privileges."""
        return self.cluster.access.has(self.caller, path, *privileges)

    def check(self, path: str, *privileges: str) -> None:
        """Raise Refused (403) unless the caller has one of them."""
        self.cluster.access.check(self.caller, path, *privileges)

    def start(self, kind: str, about: str | int, work: Work, node: str | None = None) -> str:
        """Fork a worker; its UPID is the answer."""
        return self.cluster.tasks.start(node or self.node, kind, str(about), self.caller, work, self.fault)


Rule = Callable[[Cluster, Caller, Mapping[str, Any]], None]
Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One row of the table.

    `writes`: without quorum it is refused.  `since` and `until`: the major versions that have it.
    """

    verb: str
    path: str
    handler: Handler
    allow: Rule
    params: Mapping[str, Kind] = field(default_factory=dict)
    writes: bool = True
    since: int = 8
    until: int = 99
    pattern: re.Pattern[str] = field(init=False)
    kinds: Mapping[str, Kind] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.path)))
        named = re.findall(r"\{(\w+)\}", self.path)
        common = {"node": need(NODE), "vmid": need(VMID)}
        found = {name: common.get(name, Kind(required=True)) for name in named}
        object.__setattr__(self, "kinds", {**found, **self.params})


def everybody(cluster: Cluster, caller: Caller, values: Mapping[str, Any]) -> None:
    """Whoever is logged in; the handler shows each what they may see."""


def on(path: str, *privileges: str) -> Rule:
    """Whoever has one of the privileges on the path; parameters stand in braces."""

    def rule(cluster: Cluster, caller: Caller, values: Mapping[str, Any]) -> None:
        where = filled(path, values)
        if not where and not caller.is_root:
            raise denied("", "|".join(privileges))
        cluster.access.check(caller, where, *privileges)

    return rule


def agent(privilege: str) -> Rule:
    """Whoever may use the guest agent so: one privilege for all in 8, several in 9."""

    def rule(cluster: Cluster, caller: Caller, values: Mapping[str, Any]) -> None:
        wanted = (f"VM.GuestAgent.{privilege}", "VM.GuestAgent.Unrestricted") if cluster.major >= 9 else ("VM.Monitor",)
        cluster.access.check(caller, filled("/vms/{vmid}", values), *dict.fromkeys(wanted))

    return rule


def filled(path: str, values: Mapping[str, Any]) -> str:
    """The path with its parameters; empty if it has characters that no path of the access control has."""
    found = re.sub(r"\{(\w+)\}", lambda name: str(values.get(name[1], "")), path)
    found = found if found == "/" else found.rstrip("/")
    return found if ACL_CHARACTERS.fullmatch(found) else ""


def existing_user(cluster: Cluster, caller: Caller, values: Mapping[str, Any]) -> None:
    """Whoever may change the user that the call names, or is that user."""
    if values.get("userid") not in cluster.access.users:
        raise denied()
    if values.get("userid") != caller.user or caller.token is not None:
        cluster.access.check(caller, "/access/groups", "User.Modify")
