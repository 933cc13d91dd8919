"""What Proxmox VE's texts mean: one table.  Almost every failure is a 500, so the words decide.

The patterns are held to recordings of real exchanges by `tests/unit/backends/proxmox/test_proxmox_failures.py`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass

from agentlab.backends.interface import BackendError, Gone, Refused, Unavailable
from agentlab.backends.proxmox import privileges
from agentlab.backends.proxmox.answers import CAUSE_LENGTH_MAX, Distrusted, NoAnswer, ProxmoxError
from agentlab.backends.proxmox.privileges import Grantee
from agentlab.backends.proxmox.wording import plain


class Kind(enum.Enum):
    """What went wrong, as far as it decides about what to do."""

    AUTH = "auth"  # the token is not accepted
    DISTRUSTED = "distrusted"  # the server's certificate is not
    PRIVILEGE = "privilege"
    ROOT_ONLY = "root-only"  # no token may do it
    PARAMETER = "parameter"
    UNSUPPORTED = "unsupported"
    GONE = "gone"  # the VM or snapshot is not there; of a VM: look again, it may have moved
    MISSING = "missing"  # something that the call needs is not: storage, volume, disk, pool, role
    EXISTS = "exists"
    BUSY = "busy"  # locked, or its lock not had in time
    HIBERNATED = "hibernated"
    TIMEOUT = "timeout"  # something below took too long; its effect is not known
    NO_QUORUM = "no-quorum"
    NODE_DOWN = "node-down"
    LOST = "lost"  # no answer, or none that could be passed on; the call may have been carried out
    AGENT_ABSENT = "agent-absent"  # normal for a while after a start
    AGENT_ERROR = "agent-error"  # the agent answered: no
    STORAGE_FULL = "storage-full"
    NO_MEMORY = "no-memory"
    NO_LINKED_CLONE = "no-linked-clone"
    CHECKSUM = "checksum"  # an upload arrived damaged
    BAD_IMAGE = "bad-image"
    MODIFIED = "modified"  # somebody else changed it meanwhile
    RUNNING = "running"  # and must not
    NOT_RUNNING = "not-running"  # and must
    PROTECTED = "protected"
    IN_USE = "in-use"
    WORKER_DIED = "worker-died"  # `unexpected status`: the task's process vanished; look, then try again
    CUT_OFF = "cut-off"  # a migration or transfer ended half-way
    UNKNOWN = "unknown"


# In this order; the first that is found decides.
TEXTS: tuple[tuple[str, Kind], ...] = (
    (r"^Agent error", Kind.AGENT_ERROR),  # first: the rest of it is the guest's, who may write what it likes
    (r"Permission check failed", Kind.PRIVILEGE),
    (r"Permissions\.Modify", Kind.PRIVILEGE),
    (r"[Oo]nly root (can|may)", Kind.ROOT_ONLY),
    (r"no quorum", Kind.NO_QUORUM),
    (r"unable to open file '/etc/pve/.*Permission denied", Kind.NO_QUORUM),
    (r"is locked \(suspended\)", Kind.HIBERNATED),
    (r"is locked( \(|$)", Kind.BUSY),
    (r"can't lock file .* - got timeout", Kind.BUSY),
    (r"got lock (request )?timeout|unable to acquire lock|can't acquire lock", Kind.BUSY),
    (r'Failed to get (shared )?"\w+" lock', Kind.IN_USE),
    (r"still busy in guest", Kind.BUSY),
    (r"checksum mismatch: got", Kind.CHECKSUM),
    (r"checksum mismatch|detected modified configuration", Kind.MODIFIED),
    (r"[Ll]inked clone feature is not supported|Full clone feature is not supported", Kind.NO_LINKED_CLONE),
    (r"(base volume|disk|image) .*in use by linked clone", Kind.IN_USE),
    (r"is not empty|already in use|is used by|if subnets exists|is already a pool member", Kind.IN_USE),
    (r"belongs already to pool", Kind.IN_USE),
    (r"protection mode enabled", Kind.PROTECTED),
    (r"No space left|[Oo]ut of space|not enough (free )?space|[Ii]nsufficient free space", Kind.STORAGE_FULL),
    (r"[Ii]nsufficient (suitable )?(allocatable )?(free )?extents|reached threshold|quota exceeded", Kind.STORAGE_FULL),
    (r"Cannot allocate memory|not enough memory", Kind.NO_MEMORY),
    (r"guest agent is not running|No QEMU guest agent configured|guest agent .* not connected", Kind.AGENT_ABSENT),
    (r"[Cc]onfiguration file .* does not exist|unable to find configuration file", Kind.GONE),
    (r"could not find (target )?VM|no such VM|VM \d+ does not exist", Kind.GONE),
    (r"snapshot '[^']*' does not exist", Kind.GONE),
    (r"no such task", Kind.GONE),
    (r"already exists|already defined|name '[^']*' already used", Kind.EXISTS),
    (r"already running|is running|is still running|while the source VM is running", Kind.RUNNING),
    (r"VM \d+ (is )?not running|no such process", Kind.NOT_RUNNING),
    (r"hostname lookup .* failed|No route to host|node .* is (offline|not online)", Kind.NODE_DOWN),
    (r"unexpected status", Kind.WORKER_DIED),
    (r"migration (aborted|problems)|broken pipe\s*$|Cluster join aborted", Kind.CUT_OFF),
    (r"Image is not in|invalid VMDK|'tar -t -f /var/tmp/pveupload", Kind.BAD_IMAGE),
    (r"got timeout|Timeout while waiting|timed out", Kind.TIMEOUT),
    (r"does not exist|failed to stat|[Nn]o such|undefined type|can't open '", Kind.MISSING),
    (r"does not support|is not supported|has not been found|cannot be (modified|deleted)", Kind.UNSUPPORTED),
    (r"not allowed for|can't convert a template|because VM contains snapshots|is too short", Kind.PARAMETER),
    (r"incomplete snapshot|incompatible '", Kind.UNSUPPORTED),
)
_TABLE = tuple((re.compile(pattern), kind) for pattern, kind in TEXTS)

_BY_STATUS = {400: Kind.PARAMETER, 401: Kind.AUTH, 403: Kind.PRIVILEGE, 501: Kind.UNSUPPORTED, 595: Kind.NODE_DOWN}
_BY_STATUS |= dict.fromkeys((502, 503, 504, 596, 597, 598, 599), Kind.LOST)
_PERMISSION = re.compile(r"Permission check failed \(([^,()]*), ([A-Za-z.|]+)\)")

# The class that each kind becomes, and what to do.  Where nothing can be said in advance, the words must do.
OUTCOMES: dict[Kind, tuple[type[BackendError], str]] = {
    Kind.AUTH: (Refused, "Check the token's id and secret, whether it or its user has expired, and `agentlab doctor`."),
    Kind.DISTRUSTED: (
        Refused,
        "If it was renewed, compare the fingerprint on the node (`pvenode cert info`) and pin the new one.",
    ),
    Kind.PRIVILEGE: (Refused, "`agentlab doctor` names each missing privilege and the command that grants it."),
    Kind.ROOT_ONLY: (Refused, "Only root@pam may do that; AgentLab must not need it: please report this."),
    Kind.PARAMETER: (Refused, "`agentlab doctor` checks the settings of the backend."),
    Kind.UNSUPPORTED: (Refused, "`agentlab doctor` tells what this cluster can do."),
    Kind.GONE: (Gone, "It was removed behind AgentLab's back, or is being moved; the next look tells."),
    Kind.MISSING: (Refused, "Check the backend's settings: what they name is not on the cluster."),
    Kind.EXISTS: (Unavailable, "Another id will be tried; keep other programs out of the configured VMID range."),
    Kind.BUSY: (Unavailable, "Try again in a moment; `qm unlock` on the node if a lock has outlived its owner."),
    Kind.HIBERNATED: (Refused, "Resume the sandbox first."),
    Kind.TIMEOUT: (Unavailable, "Try again; the node may be overloaded."),
    Kind.NO_QUORUM: (Unavailable, "The cluster has lost its quorum: bring back nodes (`pvecm status`)."),
    Kind.NODE_DOWN: (Unavailable, "The node does not answer: see whether it is up and pveproxy runs on it."),
    Kind.LOST: (Unavailable, "It is not known whether it was carried out; what is there decides at the next look."),
    Kind.AGENT_ABSENT: (Unavailable, "The guest agent answers some time after the start, if the template has it."),
    Kind.AGENT_ERROR: (Unavailable, "See whether the guest still works as it should."),
    Kind.STORAGE_FULL: (Unavailable, "Make room on the storage, or destroy sandboxes and old templates."),
    Kind.NO_MEMORY: (Unavailable, "The node has no memory left: stop VMs, or give sandboxes less."),
    Kind.NO_LINKED_CLONE: (Refused, "Put the template on a storage with snapshots, or let full clones be made."),
    Kind.CHECKSUM: (Unavailable, "The file arrived damaged: upload it again."),
    Kind.BAD_IMAGE: (Refused, "The image is not what its name says: build the template anew."),
    Kind.MODIFIED: (Unavailable, "Somebody else changed it at the same time; the next try reads it afresh."),
    Kind.RUNNING: (Refused, "Stop it first."),
    Kind.NOT_RUNNING: (Gone, "Start it first."),
    Kind.PROTECTED: (Refused, "An administrator has protected the VM: take its option `protection` away."),
    Kind.IN_USE: (Refused, "Remove what uses it first: linked clones, members, or the VM that has the disk."),
    Kind.WORKER_DIED: (Unavailable, "The task's process died on the node; what is there decides at the next try."),
    Kind.CUT_OFF: (Unavailable, "It ended half-way; see the task's log on the node."),
    Kind.UNKNOWN: (BackendError, "See the task's log on the node, the daemon's log and `agentlab doctor`."),
}
assert OUTCOMES.keys() == set(Kind)  # no kind forgotten


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """What a refusal names: any one of the privileges would have done.  The path may be empty: not all are told."""

    path: str
    privileges: tuple[str, ...]


def kind_of_text(text: str, status: int = 0) -> Kind:
    """The meaning of an error's words or of a task's exit status."""
    for pattern, kind in _TABLE:
        if pattern.search(text):
            return kind
    return _BY_STATUS.get(status, Kind.UNKNOWN)


def kind_of(error: ProxmoxError) -> Kind:
    """The meaning of a failed call."""
    if isinstance(error, Distrusted):
        return Kind.DISTRUSTED
    if isinstance(error, NoAnswer):
        return Kind.LOST if error.sent else Kind.NODE_DOWN
    if error.status == 401 or error.status >= 595:
        return _BY_STATUS.get(error.status, Kind.LOST)
    return kind_of_text(error.text, error.status)


def permission_of(text: str) -> Permission | None:
    """The path and the privileges that `Permission check failed (…)` names; None if it names none."""
    found = _PERMISSION.search(text)
    return Permission(path=found[1], privileges=tuple(found[2].split("|"))) if found else None


def translated(error: ProxmoxError, doing: str, grantee: Grantee | None = None) -> BackendError:
    """The error for whoever asked for `doing`: cause in the cluster's own words, and a remedy.

    With a `grantee`, a missing privilege's remedy is the command that grants it.
    """
    where = f"{error.method} {error.path}" if not isinstance(error, NoAnswer) else ""
    return failure(kind_of(error), f"{doing}: {error.words}", where, error.text, grantee)


def failed_task(exit_status: str, log_tail: Sequence[str], doing: str, grantee: Grantee | None = None) -> BackendError:
    """The error for a task that ended badly, with the last lines of its log."""
    cause = f"{doing}: the task ended with: {plain(exit_status, CAUSE_LENGTH_MAX)}"
    told = [plain(each) for each in log_tail if each.strip() and exit_status not in each]
    return failure(
        kind_of_text(exit_status), cause, f"its log ends: {' / '.join(told)}" if told else "", exit_status, grantee
    )


def failure(kind: Kind, cause: str, detail: str, words: str, grantee: Grantee | None = None) -> BackendError:
    """An error of the class that belongs to `kind`; `words` are searched for a privilege to name in the remedy."""
    outcome, remedy = OUTCOMES[kind]
    permission = permission_of(words) if kind is Kind.PRIVILEGE else None
    if permission is not None and grantee is not None:
        command = privileges.remedy(permission.path, permission.privileges, grantee)
        remedy = f"Run on a node as root: {command}"
    elif kind is Kind.PRIVILEGE and grantee is not None:
        path = f"/pool/{grantee.pool}"
        remedy = f"Run on a node as root: {privileges.remedy(path, ['VM.Allocate'], grantee)}"
    return outcome(f"{cause} ({detail})" if detail else cause, remedy)
