"""Configuring a sandbox's VM for its next start: who it shall be, how large, and how it finds home."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

from agentlab.backends.interface import Gone
from agentlab.backends.link.control import Identity, Nic
from agentlab.backends.link.guests import Guests
from agentlab.backends.proxmox import encode
from agentlab.backends.proxmox.card import CARD, card_of
from agentlab.backends.proxmox.cluster import Cluster
from agentlab.backends.proxmox.making import require_ours
from agentlab.backends.proxmox.ownership import uuid_of
from agentlab.backends.proxmox.records import VmRecord
from agentlab.base.entropy import Entropy
from agentlab.model.ids import SandboxId
from agentlab.model.network import NetworkMode, Port
from agentlab.model.sandbox import Mark, SandboxSpec
from agentlab_guest import invitation

DISK = "scsi0"
ENTROPY_BYTES = 64
RESIZE_S_MAX = 120.0
PortOf = Callable[[SandboxId, int, NetworkMode], Port]


class Armory:
    """What configuring needs.  `port_of` gives the card's addresses, which it has in mode `off` too."""

    def __init__(self, cluster: Cluster, guests: Guests, port_of: PortOf, entropy: Entropy) -> None:
        self._cluster, self._guests, self._port_of, self._entropy = cluster, guests, port_of, entropy

    async def arm(self, spec: SandboxSpec, record: VmRecord, *, fresh: bool) -> VmRecord:
        """One call, and one more if the disk has to grow.  Nothing is changed of a VM that is not seen to be ours.

        `fresh`: our own clone has ended just now, so that it need not be looked at again.
        """
        cluster, mark = self._cluster, spec.mark
        if not fresh:
            config = await cluster.config(record)
            if config is None:
                raise Gone(f"VM {record.vmid} of {mark.sandbox} is gone", "Something other than AgentLab removed it.")
            require_ours(mark, record, config)
        port = self._port_of(mark.sandbox, spec.slot, spec.network)
        params = await self._configuration(spec, port)
        await cluster.call(f"configuring VM {record.vmid}", "PUT", cluster.path(record, "config"), params)
        record = await cluster.note(
            mark.sandbox,
            record,
            identified=True,
            invited=True,
            unplugged=False,
            hostname=spec.hostname,
            secrets_bytes=spec.resources.secrets_bytes,
        )
        if not record.grown:
            record = await self._grow(mark.sandbox, record)
        return await cluster.note(mark.sandbox, record, armed=True)

    async def _configuration(self, spec: SandboxSpec, port: Port) -> dict[str, encode.Value]:
        plan, resources = self._cluster.plan, spec.resources
        invited = await self._guests.invite(
            spec.mark.sandbox,
            daemon=(str(plan.link[0]), plan.link[1]),
            nic=Nic(mac=port.mac, address=port.address, prefix_length=port.prefix_length, gateway=port.gateway),
            nameserver=None if spec.network is NetworkMode.OFF else str(plan.addresses.nameserver),
        )
        cores = max(1, math.ceil(resources.cpus))
        return {
            "smbios1": encode.format_smbios(encode.Smbios(uuid=uuid_of(spec.mark), serial=invitation.encode(invited))),
            CARD: card_of(port, plan.bridge, plan.vlan),
            "cores": cores,
            "cpulimit": resources.cpus if resources.cpus != cores else None,
            "memory": resources.memory_bytes >> 20,
            "balloon": 0,
            "onboot": False,
            # A guest that reboots would show its invitation again, which would look like a theft: its machine ends.
            "reboot": False,
        }

    async def _grow(self, sandbox: SandboxId, record: VmRecord) -> VmRecord:
        """To a size, not by one: what is asked for twice happens once."""
        cluster = self._cluster
        view = await cluster.recent()
        template = view.vms.get(record.template)
        size = (template.disk_bytes if template is not None else 0) + record.disk_bytes
        answer = await cluster.call(
            f"growing the disk of VM {record.vmid}",
            "PUT",
            cluster.path(record, "resize"),
            {"disk": DISK, "size": f"{size >> 20}M"},
        )
        if answer is not None:  # 8.x may answer without a task
            await cluster.finished(f"growing the disk of VM {record.vmid}", answer, RESIZE_S_MAX)
        return await cluster.note(sandbox, record, grown=True)

    async def withdraw(self, mark: Mark, record: VmRecord) -> VmRecord:
        """Take the invitation out of the configuration: it was redeemed, and is worth nothing any more."""
        params: encode.Params = {"smbios1": encode.format_smbios(encode.Smbios(uuid=uuid_of(mark)))}
        await self._cluster.call("removing its invitation", "PUT", self._cluster.path(record, "config"), params)
        return await self._cluster.note(mark.sandbox, record, invited=False)


def identity_of(mark: Mark, record: VmRecord, entropy: Entropy, now: float) -> Identity:
    """Whom the guest program is told to be, once it has come home; its card it has from its invitation."""
    name = f"agentlab-machine\0{mark.installation}\0{mark.sandbox}\0{mark.nonce}"
    return Identity(
        name=mark.sandbox,
        entropy=bytes.fromhex(entropy.token(ENTROPY_BYTES)),
        clock_ns=int(now * 1e9),
        machine_id=hashlib.sha256(name.encode()).hexdigest()[:32],
        hostname=record.hostname,
        secrets_bytes=record.secrets_bytes,
        grow=True,
    )
