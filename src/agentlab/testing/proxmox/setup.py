"""What an administrator prepares: storages, templates, and a token with the least that is needed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from agentlab.testing.proxmox.access import Pool, Token, User
from agentlab.testing.proxmox.cluster import QEMU, Cluster
from agentlab.testing.proxmox.state import Vm
from agentlab.testing.proxmox.storage import FILE_TYPES, Store, Volume
from agentlab.testing.proxmox.units import new_mac, new_uuid, size_text

CONTENT = ("images", "rootdir", "iso", "vztmpl", "backup", "snippets", "import")
BRIDGE = "/sdn/zones/localnetwork/vmbr0"
ON_POOL = frozenset({
    "VM.Allocate", "VM.Audit", "VM.Clone", "VM.PowerMgmt", "VM.Config.CPU", "VM.Config.Memory", "VM.Config.Disk",
    "VM.Config.Network", "VM.Config.Options", "VM.Config.Cloudinit", "VM.Config.CDROM", "VM.Config.HWType",
    "VM.Snapshot", "VM.Snapshot.Rollback", "Pool.Audit",
})  # fmt: skip
AGENT = {8: frozenset({"VM.Monitor"}), 9: frozenset({"VM.GuestAgent.Unrestricted"})}
ON_STORAGE = frozenset({"Datastore.AllocateSpace", "Datastore.AllocateTemplate", "Datastore.Audit"})
ON_TEMPLATE = frozenset({"VM.Clone", "VM.Audit"})
ON_NODES, ON_BRIDGE = frozenset({"Sys.Audit"}), frozenset({"SDN.Use"})
TOKEN_NAME = "sandboxes"  # noqa: S105 - the name of a token


class Setup:
    """Makes things directly in the state, as if they had always been there."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._subjects: list[tuple[str, str, frozenset[str]]] = []  # user, token, all privileges

    @property
    def privileges(self) -> frozenset[str]:
        """What a token needs, all paths taken together."""
        return ON_POOL | AGENT[self._cluster.major] | ON_STORAGE | ON_TEMPLATE | ON_NODES | ON_BRIDGE

    def token(self, privs: Iterable[str] | None = None, *, user: str, pool: str) -> str:
        """User, token, pool, roles and access control lists; the token with its secret."""
        access = self._cluster.access
        wanted = self.privileges if privs is None else frozenset(privs)
        number = len(self._subjects)
        name = TOKEN_NAME if number == 0 else f"{TOKEN_NAME}{number}"
        access.pools.setdefault(pool, Pool(comment="sandboxes of AgentLab"))
        token = Token(secret=access.new_secret())
        access.users.setdefault(user, User()).tokens[name] = token
        authid = f"{user}!{name}"
        self._subjects.append((user, authid, wanted))
        self._grant(number, f"/pool/{pool}", ON_POOL | AGENT[self._cluster.major])
        self._grant(number, BRIDGE, ON_BRIDGE)
        self._grant(number, "/nodes", ON_NODES)
        for store in self._cluster.stores:
            self._grant(number, f"/storage/{store}", ON_STORAGE)
        for vm in self._cluster.vms.values():
            if vm.is_template:
                self._grant(number, f"/vms/{vm.vmid}", ON_TEMPLATE)
        return f"{authid}={token.secret}"

    def _grant(self, number: int, path: str, fitting: frozenset[str]) -> None:
        user, authid, wanted = self._subjects[number]
        access = self._cluster.access
        area = path.split("/")[1].capitalize()
        role = f"AgentLab{area}{number or ''}"
        access.roles[role] = fitting & wanted
        access.set_acl(path, "user", user, role, 1)
        access.set_acl(path, "token", authid, role, 1)

    def add_storage(
        self,
        name: str,
        kind: str = "dir",
        *,
        shared: bool = False,
        folder: Path | None = None,
        content: Iterable[str] = CONTENT,
    ) -> Store:
        """A storage; of a kind without files it has only images."""
        files = kind in FILE_TYPES
        store = Store(
            name=name,
            type=kind,
            content=list(content) if files else ["images", "rootdir"],
            shared=shared,
            path=("/var/lib/vz" if name == "local" else f"/mnt/pve/{name}") if files else None,
            folder=folder if files else None,
        )
        self._cluster.stores[name] = store
        for number in range(len(self._subjects)):
            self._grant(number, f"/storage/{name}", ON_STORAGE)
        return store

    def add_template(
        self, vmid: int, storage: str, disk_bytes: int, node: str | None = None, image: Path | None = None
    ) -> Vm:
        """A template that is fit for sandboxes; `image` becomes its disk where the storage keeps real files."""
        cluster, store = self._cluster, self._cluster.stores[storage]
        where = node or next(iter(cluster.nodes))
        kind = "qcow2" if store.keeps_files else "raw"
        own = store.own_name(vmid, f"base-{vmid}-disk-0{store.extension(kind)}")
        volume = Volume(
            own=own, content="images", format=kind, size=disk_bytes, ctime=int(cluster.clock.now()), vmid=vmid
        )
        store.on(where)[own] = volume
        path = store.real(where, volume)
        if path is not None and image is not None:
            shutil.copyfile(image, path)
        config = {
            "name": f"template-{vmid}", "agent": "1", "boot": "order=scsi0", "cores": 2, "cpu": "x86-64-v2-AES",
            "memory": "2048", "meta": f"creation-qemu={QEMU[cluster.version]},ctime={int(cluster.clock.now())}",
            "net0": f"virtio={new_mac(cluster.entropy)},bridge=vmbr0,firewall=1", "ostype": "l26",
            "scsi0": f"{store.volid(volume)},size={size_text(disk_bytes)}", "scsihw": "virtio-scsi-single",
            "serial0": "socket", "vga": "serial0", "template": 1, "smbios1": f"uuid={new_uuid(cluster.entropy)}",
            "vmgenid": new_uuid(cluster.entropy),
        }  # fmt: skip
        vm = Vm(vmid=vmid, node=where, config=config)
        cluster.vms[vmid] = vm
        for number in range(len(self._subjects)):
            self._grant(number, f"/vms/{vmid}", ON_TEMPLATE)
        return vm
