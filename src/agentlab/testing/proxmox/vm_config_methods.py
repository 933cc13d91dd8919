"""Methods that read and change the config of a VM."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from agentlab.testing.proxmox.cloudinit import METHODS as CLOUDINIT_METHODS
from agentlab.testing.proxmox.drives import drive
from agentlab.testing.proxmox.formats import CONFIG_IDS, DIGEST, SNAPSHOT, STORAGE, words
from agentlab.testing.proxmox.kinds import FLAG, integer, requiring
from agentlab.testing.proxmox.method import VM, Call, Method, on
from agentlab.testing.proxmox.options import DRIVE, KINDS, OPTIONS
from agentlab.testing.proxmox.refusal import Refused, invalid
from agentlab.testing.proxmox.tasks import Task
from agentlab.testing.proxmox.vm_changes import Changes, apply, check_lock
from agentlab.testing.proxmox.vm_rights import (
    CHANGING,
    check_bridges,
    check_drive_change,
    check_drives,
    check_options,
    check_special_import,
)

_NOT_OPTIONS = frozenset(
    {"node", "vmid", "digest", "delete", "revert", "force", "skiplock", "background_delay", "import-working-storage"}
)


def check_skiplock(call: Call) -> None:
    """Raise Refused (400) unless root itself asks to pass over locks."""
    if call.values.get("skiplock") and not call.caller.is_root:
        raise invalid({"skiplock": "Only root may use this option."})


def check_ssh_keys(values: dict[str, Any]) -> None:
    """Raise Refused (500) unless the keys are keys."""
    for line in unquote(str(values.get("sshkeys", ""))).splitlines():
        if line.strip() and not re.match(r"(ssh-|ecdsa-|sk-)\S+ [A-Za-z0-9+/]{30,}={0,3}( |$)", line.strip()):
            raise Refused("SSH public key validation error")


async def _config(call: Call) -> Any:
    vm = call.vm()
    wanted = call.values.get("snapshot")
    if wanted is not None:
        if wanted not in vm.snapshots:
            raise Refused(f"snapshot '{wanted}' does not exist")
        return dict(vm.snapshots[wanted].config)
    config = dict(vm.config)
    if not call.values.get("current"):
        config |= vm.pending
        config = {key: value for key, value in config.items() if key not in vm.removed}
    if "cipassword" in config:
        config["cipassword"] = "**********"
    if vm.parent is not None:
        config["parent"] = vm.parent
    return config | {"digest": vm.digest()}


async def _pending(call: Call) -> Any:
    vm = call.vm()
    rows: list[dict[str, Any]] = []
    for key, value in vm.config.items():
        row: dict[str, Any] = {"key": key, "value": value}
        if key in vm.pending:
            row["pending"] = vm.pending[key]
        if key in vm.removed:
            row["delete"] = vm.removed[key]
        rows.append(row)
    rows += [{"key": key, "pending": value} for key, value in vm.pending.items() if key not in vm.config]
    return [*rows, {"key": "digest", "value": vm.digest()}]


def _changes(call: Call) -> Changes:
    """Check a change as far as that goes without the config's lock."""
    values = call.values
    check_ssh_keys(values)
    check_skiplock(call)
    wanted = {name: value for name, value in values.items() if name not in _NOT_OPTIONS}
    delete, revert = tuple(words(values.get("delete", ""))), tuple(words(values.get("revert", "")))
    for name in (*delete, *revert):
        if name not in OPTIONS:
            raise invalid({"delete" if name in delete else "revert": f"unknown option '{name}'"})
        if name in wanted:
            raise invalid({"delete": f"you can't use '-{name}' and -delete {name}' at the same time"})
    if not (wanted or delete or revert):
        raise Refused("no options specified")
    check_special_import(wanted)
    check_drives(call, call.vmid, wanted)
    check_options(call, call.vmid, (*delete, *revert))
    check_options(call, call.vmid, wanted)
    check_bridges(call, wanted)
    vm = call.vm()
    for name, text in wanted.items():
        if DRIVE.fullmatch(name):
            check_drive_change(call, vm.vmid, drive(name, str(text)))
    for name in delete:
        if name.startswith("unused"):
            call.check(f"/vms/{vm.vmid}", "VM.Config.Disk")
        elif DRIVE.fullmatch(name) and name in vm.config:
            check_drive_change(call, vm.vmid, drive(name, str(vm.config[name])))
    return Changes(
        values=wanted, delete=delete, revert=revert, force=bool(values.get("force")), digest=values.get("digest")
    )


async def _put(call: Call) -> Any:
    changes = _changes(call)
    async with call.cluster.locks.of_vm(call.vmid).held():
        await call.cluster.spend("config")
        await apply(call.cluster, call.vm(), changes, lambda line: None)


async def _post(call: Call) -> Any:
    changes = _changes(call)
    said = {name: value for name, value in call.values.items() if name not in ("node", "vmid", "digest")}
    if call.cluster.major < 9:  # 9 finds out in the task
        if changes.digest not in (None, call.vm().digest()):
            raise Refused("checksum mismatch (file change by other user?)")
        check_lock(call.vm())

    async def work(task: Task) -> None:
        async with call.cluster.locks.of_vm(call.vmid).held(task.log):
            words_said = " ".join(f"-{name} {value}" for name, value in sorted(said.items()))
            task.log(f"update VM {call.vmid}: {words_said}")
            await call.cluster.spend("qmconfig")
            await apply(call.cluster, call.vm(), changes, task.log)

    return call.start("qmconfig", call.vmid, work)


_CHANGE = on("/vms/{vmid}", *CHANGING)
_SEE = on("/vms/{vmid}", "VM.Audit")


_CONFIG = {
    **KINDS, "delete": CONFIG_IDS, "revert": CONFIG_IDS, "force": requiring(FLAG, "delete"), "skiplock": FLAG,
    "digest": DIGEST,
}  # fmt: skip
_IN_BACKGROUND = {"background_delay": integer(1, 30), "import-working-storage": STORAGE}
_PATH = f"{VM}/config"
METHODS = (
    Method(verb="GET", path=_PATH, handler=_config, allow=_SEE, params={"current": FLAG, "snapshot": SNAPSHOT}),
    Method(verb="PUT", path=_PATH, handler=_put, allow=_CHANGE, params=_CONFIG),
    Method(verb="POST", path=_PATH, handler=_post, allow=_CHANGE, params=_CONFIG | _IN_BACKGROUND),
    Method(verb="GET", path=f"{VM}/pending", handler=_pending, allow=_SEE),
    *CLOUDINIT_METHODS,
)  # fmt: skip
