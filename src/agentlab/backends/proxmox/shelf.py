"""Templates on the cluster: images that were built here, uploaded once, made VMs, and converted.

A template's name says which image it is.  A new image is a new template; an old one goes once nothing of ours was
cloned from it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from agentlab.backends.interface import BackendError, Refused, Unavailable
from agentlab.backends.proxmox import encode, firewall, lenient
from agentlab.backends.proxmox.arming import DISK
from agentlab.backends.proxmox.cluster import Cluster, translating
from agentlab.backends.proxmox.firewall import Firewall, Guest
from agentlab.backends.proxmox.observe import ClusterView, VmView
from agentlab.backends.proxmox.ownership import uuid_by_name
from agentlab.backends.proxmox.placement import Copy
from agentlab.backends.proxmox.upload import Upload
from agentlab.backends.proxmox.vmids import free_vmid
from agentlab.base.entropy import Entropy
from agentlab.base.files import make_directory, sync_directory, write_atomic
from agentlab.base.tasks import in_thread
from agentlab.model.ids import Digest
from agentlab.model.network import NetworkMode
from agentlab.model.sandbox import SandboxSpec

log = logging.getLogger(__name__)

UPLOAD_S_MAX = 3600.0
IMPORT_S_MAX = 1800.0
CONVERT_S_MAX = 300.0
MEMORY_MIB = 512  # of a template, which never runs; each sandbox is given its own
_KEY = "agentlab-template"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterImage:
    """An image that boots by firmware; the composition root takes it from the templates."""

    digest: Digest
    disk: Path  # qcow2
    guest_version: str


ImageOf = Callable[[Digest], Awaitable[ClusterImage]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A template of ours on the cluster; written down before it is asked for."""

    template: str  # the recipe's name
    image: str  # the digest
    vmid: int
    node: str
    storage: str
    nonce: str
    done: bool = False

    @property
    def name(self) -> str:
        """The VM's."""
        return name_of(self.template, self.image)


def name_of(template: str, image: str) -> str:
    """Of the VM: a DNS label."""
    return f"agentlab-{template[:30]}-{image[:12]}"


class Shelf:
    """The templates of one installation on its cluster."""

    def __init__(self, cluster: Cluster, image_of: ImageOf, entropy: Entropy, nodes: Sequence[str] = ()) -> None:
        """`nodes`: where each template shall lie, if its storage is not shared; otherwise on the roomiest one."""
        self._cluster, self._image_of, self._entropy, self._nodes = cluster, image_of, entropy, tuple(nodes)
        self._making = asyncio.Lock()
        self._adopted: dict[int, Copy] = {}

    async def copies(self, spec: SandboxSpec) -> Sequence[Copy]:
        """Where the template of a sandbox can be cloned from; it is brought there first if it is not."""
        if (vmid := self._cluster.plan.templates.get(spec.template)) is not None:
            return [await self._adopt(spec.template, vmid)]
        image = await self._image_of(spec.template_digest)
        async with self._making:
            found = self._standing(await self._cluster.recent(), spec.template, image)
            missing = [node for node in self._nodes if node not in {each.node for each in found}]
            if found and not missing:
                return found
            if self._is_shared() and found:
                return found
            for node in missing or [self._roomiest(await self._cluster.look())]:
                await self._bring(spec.template, image, node)
            await self._sweep(spec.template, image)
            return self._standing(await self._cluster.look(), spec.template, image)

    async def _adopt(self, template: str, vmid: int) -> Copy:
        """A template that an administrator made.  Refused, with what it lacks."""
        view = await self._cluster.recent()
        row = view.vms.get(vmid)
        setting = f"`backends.proxmox.templates.{template}`"
        if row is None:
            raise Refused(
                f"there is no VM {vmid}, or the token may not see it", f"Correct {setting}, or grant VM.Audit."
            )
        if not row.template:
            raise Refused(
                f"VM {vmid} is not a template", f"As an administrator: qm template {vmid}; or correct {setting}."
            )
        known = self._adopted.get(vmid)
        if known is not None and known.node == row.node:
            return known
        config = await self._config(row.node, vmid)
        if lacks := lacking(config):
            raise Refused(f"template {vmid} lacks: {'; '.join(lacks)}", "Change it, or let AgentLab build its own.")
        storage = lenient.text(config, DISK).partition(":")[0]
        made = self._adopted[vmid] = Copy(vmid=vmid, node=row.node, storage=storage)
        return made

    def _standing(self, view: ClusterView, template: str, image: ClusterImage) -> list[Copy]:
        """What we made of this image and is there, by our records and what is seen."""
        found = []
        for made in self._all():
            row = view.vms.get(made.vmid)
            same = made.done and (made.template, made.image) == (template, image.digest)
            # What is new is seen without its name for a while, and not as a template.
            if same and row is not None and (row.template or row.name in ("", made.name)):
                found.append(Copy(vmid=made.vmid, node=row.node, storage=made.storage))
        return found

    def _is_shared(self) -> bool:
        view = self._cluster.view
        rows = (
            [] if view is None else [each for each in view.storages.values() if each.name == self._cluster.plan.storage]
        )
        return any(each.shared for each in rows)

    def _roomiest(self, view: ClusterView) -> str:
        policy, storage = self._cluster.plan.policy, self._cluster.plan.storage
        fit = [
            node
            for node in view.nodes.values()
            if node.online and (not policy.nodes or node.name in policy.nodes) and (node.name, storage) in view.storages
        ]
        if not fit:
            raise Unavailable(
                f"no node that is online has the storage {storage}",
                "Correct `backends.proxmox.storage`, or grant the token Datastore.Audit on it.",
            )
        return max(fit, key=lambda node: (node.memory_bytes - node.memory_used_bytes, node.name)).name

    # Making one

    async def _bring(self, template: str, image: ClusterImage, node: str) -> None:
        cluster, plan = self._cluster, self._cluster.plan
        made = await self._intent(template, image, node)
        made = await self._settled(made)
        if made.done:
            return
        log.info("bringing a template to the cluster", extra={"template": made.name, "node": node, "vmid": made.vmid})
        volume = await self._upload(made, image)
        params: dict[str, encode.Value] = {
            "vmid": made.vmid,
            "name": made.name,
            "pool": plan.pool,
            "description": describe(made, cluster.records.installation),
            "memory": MEMORY_MIB,
            "cores": 1,
            "ostype": "l26",
            "scsihw": "virtio-scsi-single",
            DISK: f"{plan.storage}:0,import-from={volume},discard=on",
            "boot": f"order={DISK}",
            "net0": encode.format_properties(
                {"model": "virtio", "bridge": plan.bridge, "firewall": True, "tag": plan.vlan}, default_key="model"
            ),
            "agent": 1,
            "serial0": "socket",
            "smbios1": encode.format_smbios(encode.Smbios(uuid=uuid_of(made))),
        }
        path = encode.path("nodes", node, "qemu")
        await cluster.run(f"making the template VM {made.vmid}", "POST", path, params, IMPORT_S_MAX)
        await self._wall(made)
        answer = await cluster.call("converting", "POST", encode.path("nodes", node, "qemu", made.vmid, "template"), {})
        if answer is not None:
            await cluster.finished(f"converting VM {made.vmid} to a template", answer, CONVERT_S_MAX)
        await self._write(replace(made, done=True))
        await self._drop_upload(node, volume)

    async def _intent(self, template: str, image: ClusterImage, node: str) -> Made:
        for each in self._all():
            if (each.template, each.image, each.node) == (template, image.digest, node):
                return each
        plan, view = self._cluster.plan, await self._cluster.look()
        taken = {each.vmid for each in self._all()}
        reserved = {*self._cluster.records.vmids(), *plan.templates.values(), *taken}
        vmid = free_vmid(plan.vmids, view.vmids, reserved, self._entropy.fraction(), setting="backends.proxmox.vmids")
        made = Made(
            template=template,
            image=image.digest,
            vmid=vmid,
            node=node,
            storage=plan.storage,
            nonce=self._entropy.token(16),
        )
        await self._write(made)
        return made

    async def _settled(self, made: Made) -> Made:
        """What an earlier try left: gone on with if it is whole, removed if it is half."""
        row = (await self._cluster.look()).vms.get(made.vmid)
        if row is None:
            return replace(made, done=False)
        if not await self._is_ours(made, row):
            await self._forget(made)
            raise Unavailable(f"VMID {made.vmid} was taken by somebody else", "Another one is chosen at the next try.")
        if row.template:
            made = replace(made, done=True)
            await self._write(made)
            return made
        await self._destroy(made)
        return made

    async def _upload(self, made: Made, image: ClusterImage) -> str:
        cluster, plan = self._cluster, self._cluster.plan
        file = f"agentlab-{image.digest[:16]}.qcow2"
        digest = await in_thread(lambda: _sha256(image.disk))
        upload = Upload(file=image.disk, name=file, content="import", boundary=self._entropy.token(16), sha256=digest)
        doing = f"uploading the image of {made.template}"
        async with translating(doing, cluster.grantee):
            answer = await cluster.transport.upload(made.node, plan.uploads, upload)
        await cluster.finished(doing, answer, UPLOAD_S_MAX)
        return f"{plan.uploads}:import/{file}"

    async def _drop_upload(self, node: str, volume: str) -> None:
        """The uploaded file is not needed any more; the right to remove it is not asked of everybody."""
        storage = volume.partition(":")[0]
        path = encode.path("nodes", node, "storage", storage, "content", volume)
        try:
            await self._cluster.run("removing the uploaded image", "DELETE", path, {}, CONVERT_S_MAX)
        except BackendError as error:
            log.warning("uploaded image stays", extra={"volume": volume, "cause": error.cause})

    async def _wall(self, made: Made) -> None:
        """Its firewall, which every clone copies: all but the address."""
        plan = self._cluster.plan
        want = firewall.wanted(
            Guest(
                mode=NetworkMode.NAT,
                address=None,
                link=plan.link,
                nameserver=plan.addresses.nameserver,
                on_link=plan.on_link,
            )
        )
        base = encode.path("nodes", made.node, "qemu", made.vmid, "firewall")
        for each in firewall.difference(want, Firewall()):
            await self._cluster.call("setting its firewall", each.method, f"{base}{each.path}", each.params)

    # Removing

    async def _sweep(self, template: str, image: ClusterImage) -> None:
        """Remove older ones that nothing of ours was cloned from.  What others use, the cluster keeps."""
        used = {record.template for _, record in self._cluster.records.all() if record is not None}
        for made in self._all():
            if made.template == template and made.image != image.digest and made.vmid not in used:
                try:
                    row = (await self._cluster.recent()).vms.get(made.vmid)
                    if row is not None and await self._is_ours(made, row):
                        await self._destroy(made)
                    await self._forget(made)
                except BackendError as error:
                    log.info("old template stays", extra={"template": made.name, "cause": error.cause})

    async def _destroy(self, made: Made) -> None:
        path = encode.path("nodes", made.node, "qemu", made.vmid)
        params: encode.Params = {"purge": True, "destroy-unreferenced-disks": True}
        await self._cluster.patiently(f"removing template VM {made.vmid}", "DELETE", path, params, CONVERT_S_MAX)

    async def _is_ours(self, made: Made, row: VmView) -> bool:
        """Our number, our nonce and our uuid: a copy that somebody made has another uuid."""
        config = await self._config(row.node, made.vmid)
        try:
            uuid = encode.parse_smbios(lenient.text(config, "smbios1")).uuid
        except ValueError:
            uuid = ""
        return read_nonce(lenient.text(config, "description")) == made.nonce and uuid == uuid_of(made)

    async def _config(self, node: str, vmid: int) -> lenient.Row:
        path = encode.path("nodes", node, "qemu", vmid, "config")
        return lenient.row(await self._cluster.call(f"reading VM {vmid}", "GET", path))

    # Records

    @property
    def _folder(self) -> Path:
        return self._cluster.records.state / "templates"

    def _file(self, made: Made) -> Path:
        return self._folder / f"{made.vmid}.json"

    def _all(self) -> Sequence[Made]:
        found = []
        for path in sorted(self._folder.glob("*.json")) if self._folder.is_dir() else ():
            try:
                found.append(Made(**json.loads(path.read_bytes())))
            except (ValueError, TypeError) as error:
                raise Refused(f"{path} cannot be read: {error}", "Restore it from a backup.") from error
        return found

    async def _write(self, made: Made) -> None:
        def write() -> None:
            make_directory(self._folder)
            write_atomic(self._file(made), json.dumps(asdict(made)).encode())

        await in_thread(write)

    async def _forget(self, made: Made) -> None:
        def remove() -> None:
            self._file(made).unlink(missing_ok=True)
            sync_directory(self._folder)

        await in_thread(remove)


def lacking(config: lenient.Row) -> list[str]:
    """What a template of somebody else's lacks for sandboxes to be made of it."""
    found = []
    if not lenient.text(config, DISK):
        found.append(f"its system's disk must be {DISK}")
    agent = lenient.text(config, "agent")
    if not agent or agent.split(",")[0] in ("0", "enabled=0"):
        found.append("the option `agent`, before the first start")
    card = lenient.text(config, "net0")
    if not card:
        found.append("a network card net0")
    if any(key.startswith("net") and key != "net0" and key[3:].isdigit() for key in config):
        found.append("no more than one network card")
    if not lenient.truth(config, "template"):
        found.append("conversion to a template")
    return found


def uuid_of(made: Made) -> str:
    """That its VM bears."""
    return uuid_by_name("agentlab-template", made.nonce, str(made.vmid))


def describe(made: Made, installation: str) -> str:
    """For people, and the mark."""
    line = json.dumps({_KEY: {"installation": installation, "image": made.image, "nonce": made.nonce}})
    return (
        f"Template {made.template} of the AgentLab installation {installation}, which sandboxes are cloned from.  "
        f"Please leave the next line as it is.\n\n{line}"
    )


def read_nonce(description: str) -> str:
    """Of the mark in a description; empty if there is none."""
    for line in description.splitlines():
        if f'"{_KEY}"' in line:
            try:
                return str(json.loads(line)[_KEY]["nonce"])
            except (ValueError, KeyError, TypeError):
                return ""
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
