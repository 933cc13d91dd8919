"""Whose a VM is.  Pure.

A clone call takes a description, so that the mark is there from the first moment; the uuid of SMBIOS follows.  A
person's clone of our VM copies description, tags and serial, but never the uuid; and numbers are used again.  So what
is ours has a number that we recorded before the call, and our nonce while it is half made, our uuid from then on.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from agentlab.backends.proxmox.encode import parse_smbios
from agentlab.model.ids import InstallationId, SandboxId, is_id
from agentlab.model.sandbox import Mark

_KEY = "agentlab"  # the one key of the mark's line, so that a stranger's JSON is not taken for it
# What a VM's config holds while it is being cloned or created: nothing of what it will be.
_BEING_MADE = frozenset({"clone", "create"})


class Whose(enum.Enum):
    """What may be done with a VM."""

    OURS = "ours"
    HALF_MADE = "half-made"  # ours, and only to be finished or removed
    UNDECIDED = "undecided"  # it is being made, by us or somebody else: look again, touch nothing
    FOREIGN = "foreign"  # never to be touched


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What our own records say of a number."""

    vmid: int
    identified: bool  # our uuid was set, and that was seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whose it is, and what shows it."""

    whose: Whose
    reason: str

    @property
    def may_be_destroyed(self) -> bool:
        """Whether a destructive call is allowed."""
        return self.whose in (Whose.OURS, Whose.HALF_MADE)


def uuid_of(mark: Mark) -> str:
    """The uuid that the sandbox's VM bears, made of its whole mark; shaped as a name-based one (version 5)."""
    return uuid_by_name("agentlab-vm", mark.installation, mark.sandbox, mark.nonce)


def uuid_by_name(*words: str) -> str:
    """A uuid made of words; shaped as version 5."""
    octets = bytearray(hashlib.sha256("\0".join(words).encode()).digest()[:16])
    octets[6] = octets[6] & 0x0F | 0x50
    octets[8] = octets[8] & 0x3F | 0x80
    text = octets.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def describe(mark: Mark) -> str:
    """The description of the sandbox's VM: a sentence for people, and the mark."""
    line = json.dumps({_KEY: asdict(mark)}, separators=(",", ":"))
    return (
        f"Sandbox {mark.sandbox} of the AgentLab installation {mark.installation}, which starts, stops and destroys "
        f"it.  Please leave the next line as it is.\n\n{line}"
    )


def read_mark(description: str) -> Mark | None:
    """The mark in a description, whosever it is; None if there is none, or more than one."""
    found = [mark for line in description.splitlines() if (mark := _mark_of(line)) is not None]
    return found[0] if len(found) == 1 else None


def is_ours(config: Mapping[str, object], mark: Mark, recorded: Recorded | None, vmid: int) -> Verdict:
    """Judge the VM with this number by its config, as it was read just now.

    `recorded` is what the store holds for the sandbox `mark`; None if it holds no number.
    """
    if recorded is None or recorded.vmid != vmid:
        held = "none" if recorded is None else str(recorded.vmid)
        return _verdict(Whose.FOREIGN, f"VM {vmid} is not the one recorded for {mark.sandbox} ({held})")
    if parse_uuid(config) == uuid_of(mark):
        return _verdict(Whose.OURS, f"VM {vmid} bears the uuid of {mark.sandbox}")
    if recorded.identified:
        return _verdict(Whose.FOREIGN, f"VM {vmid} bears another uuid than {mark.sandbox} had")
    found = read_mark(str(config.get("description") or ""))
    if found == mark:
        return _verdict(Whose.HALF_MADE, f"VM {vmid} bears the nonce of {mark.sandbox}, not yet its uuid")
    if found is None and config.get("lock") in _BEING_MADE:
        return _verdict(Whose.UNDECIDED, f"VM {vmid} is being made and does not show yet by whom")
    said = "another mark" if found is not None else "no mark"
    return _verdict(Whose.FOREIGN, f"VM {vmid} bears {said}, and not the uuid of {mark.sandbox}")


def is_foreign(config: Mapping[str, object], mark: Mark, recorded: Recorded) -> bool:
    """Whether nothing of a VM with our number is ours: ours is gone, and its number was given to somebody else.

    What bears our mark beside another uuid is not that: somebody has changed or restored it, and must decide.
    """
    whose = is_ours(config, mark, recorded, recorded.vmid).whose
    return whose is Whose.FOREIGN and read_mark(str(config.get("description") or "")) != mark


def parse_uuid(config: Mapping[str, object]) -> str:
    """The uuid of a config, in lower case; empty if it has none."""
    try:
        return parse_smbios(str(config.get("smbios1") or "")).uuid
    except ValueError:
        return ""


def _verdict(whose: Whose, reason: str) -> Verdict:
    return Verdict(whose=whose, reason=reason)


def _mark_of(line: str) -> Mark | None:
    if f'"{_KEY}"' not in line:
        return None
    try:
        fields = json.loads(line)[_KEY]
        made = Mark(
            installation=InstallationId(fields["installation"]),
            sandbox=SandboxId(fields["sandbox"]),
            nonce=fields["nonce"],
        )
    except (ValueError, KeyError, TypeError):
        return None
    whole = fields.keys() == {"installation", "sandbox", "nonce"} and all(
        isinstance(each, str) for each in fields.values()
    )
    return made if whole and is_id(made.sandbox) and made.nonce else None
