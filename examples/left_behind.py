"""What an installation of AgentLab has left on this machine, beside its own directory: one line each, or nothing.

Usage: left_behind.py DIRECTORY [INSTALLATION].  The exit status is 1 if anything is left.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def processes(directory: Path) -> Iterator[str]:
    """Processes that were started from, or for, the directory."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has just ended
        if any(str(directory) in word for word in words) and "left_behind" not in " ".join(words):
            yield f"process {entry.name}: {' '.join(words)[:100]}"


def mounts(directory: Path) -> Iterator[str]:
    """Mounts below the directory, and loop devices that hold a file of it."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split(" ")[4].startswith(str(directory)):
            yield f"mount {line.split(' ')[4]}"
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        if backing.read_text().startswith(str(directory)):
            yield f"loop device {backing.parts[3]}: {backing.read_text().strip()}"


def network(installation: str) -> Iterator[str]:
    """Bridge, links and firewall tables of the installation."""
    for link in Path("/sys/class/net").iterdir():
        if link.name == f"al{installation}" or link.name.startswith(f"al{installation[:4]}-"):
            yield f"network link {link.name}"
    listed = subprocess.run(["nft", "-j", "list", "tables"], capture_output=True, check=True).stdout
    for each in json.loads(listed)["nftables"]:
        if installation in each.get("table", {}).get("name", ""):
            yield f"nft table {each['table']['family']} {each['table']['name']}"


def groups(installation: str) -> Iterator[str]:
    """Control groups of the installation."""
    for parent in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")):
        yield from (f"control group {group}" for group in parent.glob(f"agentlab-{installation}*"))


if __name__ == "__main__":
    where, own = Path(sys.argv[1]).absolute(), sys.argv[2:3]
    found = [*processes(where), *mounts(where)]
    found += [*network(own[0]), *groups(own[0])] if own else []
    found += [f"directory {each}" for each in (where / "run").glob("*/*") if any(each.rglob("sb-*"))]
    found += [f"directory {each}" for each in where.glob("state/*/sandboxes/sb-*")]
    print("\n".join(found), end="\n" if found else "")
    sys.exit(1 if found else 0)
