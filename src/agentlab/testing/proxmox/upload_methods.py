"""The method that takes a file: its name and contents are looked at, then it replaces what was there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentlab.base.tasks import in_thread
from agentlab.testing.proxmox.access import Caller
from agentlab.testing.proxmox.cluster import Cluster
from agentlab.testing.proxmox.images import QCOW2, virtual_size
from agentlab.testing.proxmox.kinds import need, one_of, requiring, text
from agentlab.testing.proxmox.method import Call, Method
from agentlab.testing.proxmox.refusal import Refused, invalid
from agentlab.testing.proxmox.storage import Store, Volume
from agentlab.testing.proxmox.tasks import Task

EXTENSIONS = {
    "iso": (".iso", ".img"),
    "vztmpl": (".tar.gz", ".tar.xz", ".tar.zst"),
    "import": (".qcow2", ".raw", ".vmdk", ".ova"),
}
WRONG_NAME = {"import": "invalid filename or wrong extension"}
HEAD_BYTES = 1024
SUMS = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
TAR_MARK = slice(257, 262)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """What is known of an uploaded file once the request is over; `kept`: where its bytes wait, if anywhere."""

    head: bytes
    size: int
    sum: str | None
    path: str  # as messages name it
    kept: Path | None


async def _upload(call: Call) -> Any:
    values, upload = call.values, call.upload
    store = call.cluster.store(values["storage"], call.node)
    kind, name = values["content"], _safe(values["filename"])
    if not name.endswith(EXTENSIONS[kind]):
        raise invalid({"filename": WRONG_NAME.get(kind, "wrong file extension")})
    if kind not in store.content:
        raise Refused(f"storage '{store.name}' does not support '{kind}' content")
    assert upload is not None
    body, word = upload.body, call.cluster.entropy.token(16)
    file = await in_thread(lambda: _received(body, word, store, values.get("checksum-algorithm")))
    suffix = name.rpartition(".")[2]
    volume = Volume(
        own=f"{kind}/{name}", content=kind, format="tgz" if kind == "vztmpl" else suffix, size=file.size, ctime=0
    )

    async def work(task: Task) -> None:
        try:
            await call.cluster.spend("imgcopy")
            task.log(f"starting file import from: {file.path}")
            _check_contents(task, kind, suffix, file)
            _check_sum(task, values, file)
            _place(call, task, store, volume, file)
        finally:
            if file.kept is not None:
                file.kept.unlink(missing_ok=True)

    return call.start("imgcopy", "", work)


def _received(body: memoryview, word: str, store: Store, algorithm: str | None) -> _File:
    """Take what is needed out of the request, whose memory ends with it."""
    kept = None
    if store.folder is not None:
        store.folder.mkdir(parents=True, exist_ok=True)
        kept = store.folder / f".upload-{word}"
        kept.write_bytes(body)
    return _File(
        head=bytes(body[:HEAD_BYTES]),
        size=len(body),
        sum=None if algorithm is None else hashlib.new(algorithm, body, usedforsecurity=False).hexdigest(),
        path=f"/var/tmp/pveupload-{word}",
        kept=kept,
    )


def _place(call: Call, task: Task, store: Store, volume: Volume, file: _File) -> None:
    """Put it where it belongs; one of the same name is replaced without a word."""
    target = store.file(call.node, volume)
    task.lines += [f"target node: {call.node}", f"target file: {target}", f"file size is: {file.size}"]
    task.log(f"command: cp -- {file.path} {target}")
    volume.ctime, volume.used = int(call.cluster.clock.now()), virtual_size(file.head, volume.format, file.size)
    store.on(call.node)[volume.own] = volume
    path = store.real(call.node, volume)
    if path is not None and file.kept is not None:
        file.kept.replace(path)
    task.log("finished file import successfully")


def _safe(given: str) -> str:
    return re.sub(r"[^-a-zA-Z0-9_.]", "_", re.split(r"[/\\]", given)[-1])


def _check_contents(task: Task, kind: str, suffix: str, file: _File) -> None:
    if kind != "import":
        return
    if suffix == "ova" and file.head[TAR_MARK] != b"ustar":
        task.lines += ["tar: This does not look like a tar archive", "tar: Skipping to next header"]
        task.log("tar: Exiting with failure status due to previous errors")
        raise Refused(f"command 'tar -t -f {file.path}' failed: exit code 2")
    if suffix == "qcow2" and not file.head.startswith(QCOW2):
        raise Refused(f"qemu-img: Could not open '{file.path}': Image is not in qcow2 format")
    if suffix == "vmdk" and not file.head.startswith((b"KDMV", b"# Di")):
        raise Refused(f"qemu-img: Could not open '{file.path}': invalid VMDK image descriptor")


def _check_sum(task: Task, values: Mapping[str, Any], file: _File) -> None:
    if "checksum" not in values:
        return
    task.log("calculating checksum...")
    if file.sum != values["checksum"]:
        raise Refused(f"checksum mismatch: got '{file.sum}' != expect '{values['checksum']}'")
    task.lines[-1] += "OK, checksum verified"


def _may_upload(cluster: Cluster, caller: Caller, values: Mapping[str, Any]) -> None:
    cluster.access.check(caller, f"/storage/{values.get('storage', '')}", "Datastore.AllocateTemplate")


METHODS = (
    Method(
        verb="POST",
        path="/nodes/{node}/storage/{storage}/upload",
        handler=_upload,
        allow=_may_upload,
        writes=False,
        params={
            "content": need(one_of("iso", "vztmpl", "import")),
            "filename": need(text(255)),
            "checksum": requiring(text(), "checksum-algorithm"),
            "checksum-algorithm": requiring(one_of(*SUMS), "checksum"),
        },
    ),
)
