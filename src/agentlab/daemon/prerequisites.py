"""What a daemon without root needs of its machine, and how to get what is missing."""

from __future__ import annotations

import pwd
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentlab.base.process import run, which
from agentlab.model.finding import Finding

SUBORDINATE_MIN = 65535  # with the user's own id, a sandbox's 65536
SUBORDINATE_FIRST = 100_000
TRY_S_MAX = 10.0
SUBUID, SUBGID = Path("/etc/subuid"), Path("/etc/subgid")
_PROGRAMS = {
    "newuidmap": "uidmap",
    "newgidmap": "uidmap",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "mount": "mount",
}
_ALLOW = (
    "Allow this user to make user, mount and network namespaces; inside a container, its seccomp profile may forbid it."
)
# A kernel setting, the value that forbids, and why it is there.
_SETTINGS = (
    ("kernel/unprivileged_userns_clone", "0", "1", "this kernel keeps user namespaces for root"),
    ("user/max_user_namespaces", "0", "15000", "the number of user namespaces is limited to none"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0", "AppArmor keeps user namespaces for listed programs"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdRange:
    """Ids of the host that a user may hand out."""

    first: int
    count: int


def user_name(uid: int) -> str:
    """The name of a user; the number where the host knows none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def ranges(text: str, user: str, uid: int) -> list[IdRange]:
    """What /etc/subuid or /etc/subgid, given as text, grants to a user; what cannot be read in it is passed over."""
    found = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in (user, str(uid)) and fields[1].isdigit() and fields[2].isdigit():
            found.append(IdRange(first=int(fields[1]), count=int(fields[2])))
    return [each for each in found if each.count]


def granted(file: Path, uid: int) -> list[IdRange]:
    """What `file` grants to this user."""
    return ranges(_text(file), user_name(uid), uid)


async def look(uid: int) -> list[Finding]:
    """Each thing that is missing and without which nothing works; empty on a machine where all is there."""
    found = [_program(program, package) for program, package in _PROGRAMS.items() if which(program) is None]
    found += subordinates(_text(SUBUID), _text(SUBGID), user_name(uid), uid)
    if which("unshare") is not None:
        refused = await run(["unshare", "--user", "--mount", "--net", "true"], timeout_s=TRY_S_MAX, check=False)
        if refused.status != 0:
            values = {name: _text(Path("/proc/sys") / name).strip() for name, *_ in _SETTINGS}
            found.append(namespaces(values, refused.err.decode(errors="replace").strip()))
    return found


def namespaces(values: Mapping[str, str], said: str) -> Finding:
    """Why the kernel refuses user namespaces, from its settings' values and from what `unshare` said."""
    refusing = [each for each in _SETTINGS if values.get(each[0]) == each[1]]
    remedies = "; ".join(f"sysctl -w {name.replace('/', '.')}={allows}" for name, _, allows, _ in refusing)
    return Finding(
        name="user namespaces",
        ok=False,
        detail="; ".join(why for *_, why in refusing) or said or "the kernel refuses them",
        remedy=f"As root: {remedies}" if remedies else _ALLOW,
    )


def _program(program: str, package: str) -> Finding:
    return Finding(name=program, ok=False, detail="not found", remedy=f"apt-get install {package}")


def subordinates(subuid: str, subgid: str, user: str, uid: int) -> Iterable[Finding]:
    """What is missing in the texts of the two files, with a range that is granted to nobody yet."""
    short = [
        f"{file} grants {user} {count} of the {SUBORDINATE_MIN} ids that sandboxes need"
        for file, text in ((SUBUID, subuid), (SUBGID, subgid))
        if (count := sum(each.count for each in ranges(text, user, uid))) < SUBORDINATE_MIN
    ]
    if short:
        first = _free((subuid, subgid))
        span = f"{first}-{first + 65535}"
        remedy = f"As root: usermod --add-subuids {span} --add-subgids {span} {user}"
        yield Finding(name="subordinate ids", ok=False, detail="; ".join(short), remedy=remedy)


def _free(texts: Sequence[str]) -> int:
    """The first id beyond all that have been granted to anybody."""
    ends = [SUBORDINATE_FIRST]
    for line in "\n".join(texts).splitlines():
        fields = line.split(":")
        if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit():
            ends.append(int(fields[1]) + int(fields[2]))
    return max(ends)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
