"""A sandbox's network card on the cluster: which one, and its policy, which the cluster's firewall enforces."""

from __future__ import annotations

from collections.abc import Sequence

from agentlab.backends.interface import BackendError, Gone
from agentlab.backends.proxmox import encode, firewall, lenient
from agentlab.backends.proxmox.answers import ProxmoxError
from agentlab.backends.proxmox.cluster import Cluster
from agentlab.backends.proxmox.failures import Kind, kind_of, translated
from agentlab.backends.proxmox.firewall import Firewall, Guest
from agentlab.backends.proxmox.records import VmRecord
from agentlab.base.tasks import in_thread
from agentlab.model.ids import SandboxId
from agentlab.model.network import Port

CARD = "net0"


def card_of(port: Port, bridge: str, vlan: int | None, *, unplugged: bool = False) -> str:
    """The value of `net0`: our MAC, under the firewall."""
    return encode.format_properties(
        {
            "virtio": port.mac.upper(),
            "bridge": bridge,
            "firewall": True,
            "link_down": True if unplugged else None,
            "tag": vlan,
        }
    )


class Cards:
    """In both modes there is a card: the guest link needs it, and in mode `off` nothing else passes.

    Raises BackendError's subclasses, and ValueError for a record that cannot be read.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def attach(self, port: Port, vmid: int) -> None:
        """Apply the policy and read it back; plug the card in if it was unplugged.  Gone without that VM."""
        sandbox = SandboxId(port.sandbox)
        record = await self._record(sandbox)
        if record is None or record.vmid != vmid:
            raise Gone(f"the VM of {sandbox} is gone", "See why: `agentlab sandbox show`.")
        await self._apply(record, firewall.wanted(self._guest(port)))
        if record.unplugged:
            plan = self._cluster.plan
            params: encode.Params = {CARD: card_of(port, plan.bridge, plan.vlan)}
            await self._cluster.call("plugging its network", "PUT", self._cluster.path(record, "config"), params)
        await self._cluster.note(sandbox, record, policed=True, unplugged=False, network=port.mode.value)

    async def verify(self, port: Port) -> bool:
        """Whether the policy stands as it was applied."""
        record = await self._record(SandboxId(port.sandbox))
        if record is None or not record.policed or record.network != port.mode.value:
            return False
        return firewall.reads_back(firewall.wanted(self._guest(port)), await self._found(record))

    async def detach(self, sandbox: SandboxId) -> None:
        """A card that may be in use is unplugged: the rules stay, and whatever still runs is alone."""
        record = await self._record(sandbox)
        if record is None or not record.policed:
            return
        in_use = record.armed or record.ran
        config = await self._cluster.config(record) if in_use else None
        if config is not None and (card := lenient.text(config, CARD)):
            values = {**encode.parse_properties(card), "link_down": "1"}
            params: encode.Params = {CARD: encode.format_properties(values)}
            await self._cluster.call("unplugging its network", "PUT", self._cluster.path(record, "config"), params)
        await self._cluster.note(sandbox, record, policed=False, unplugged=in_use)

    async def attached(self) -> Sequence[SandboxId]:
        """Sandboxes whose card is under its policy, by our own records."""
        records = self._cluster.records

        def look() -> list[SandboxId]:
            return [mark.sandbox for mark, record in records.all() if record is not None and record.policed]

        return await in_thread(look)

    def _guest(self, port: Port) -> Guest:
        plan = self._cluster.plan
        return Guest(
            mode=port.mode,
            address=port.address,
            link=plan.link,
            nameserver=plan.addresses.nameserver,
            on_link=plan.on_link,
        )

    async def _record(self, sandbox: SandboxId) -> VmRecord | None:
        return await in_thread(lambda: self._cluster.records.read(sandbox))

    async def _apply(self, record: VmRecord, want: Firewall) -> None:
        """A clone of a template of ours lacks nothing but its address: that is tried first, and then all is read."""
        for address in want.addresses or ():
            await self._add(record, address)
        lacking = firewall.difference(want, await self._found(record))
        for each in lacking:
            path = f"{self._cluster.path(record, 'firewall')}{each.path}"
            await self._cluster.call("setting its firewall", each.method, path, each.params)
        if lacking and not firewall.reads_back(want, await self._found(record)):
            raise BackendError(
                f"the firewall of VM {record.vmid} does not read back as it was set",
                "See who else changes it; the sandbox does not start.",
            )

    async def _add(self, record: VmRecord, address: str) -> None:
        """Add an address to the card's set; if it cannot be, the reading that follows tells what lacks."""
        path = self._cluster.path(record, "firewall", "ipset", firewall.IPSET)
        try:
            await self._cluster.transport.call("POST", path, {"cidr": address})
        except ProxmoxError as error:
            if kind_of(error) not in (Kind.PARAMETER, Kind.EXISTS, Kind.MISSING, Kind.UNKNOWN):
                raise translated(error, "setting its address", self._cluster.grantee) from error

    async def _found(self, record: VmRecord) -> Firewall:
        base = self._cluster.path(record, "firewall")
        options = await self._cluster.call("reading its firewall", "GET", f"{base}/options")
        rules = await self._cluster.call("reading its firewall", "GET", f"{base}/rules")
        members: object | None
        try:
            members = await self._cluster.transport.call("GET", f"{base}/ipset/{firewall.IPSET}")
        except ProxmoxError as error:
            if kind_of(error) not in (Kind.MISSING, Kind.PARAMETER, Kind.UNKNOWN):
                raise translated(error, "reading its firewall", self._cluster.grantee) from error
            members = None
        return firewall.found(options, rules, members)
