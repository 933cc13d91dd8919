"""A daemon that is not root goes on as root of namespaces of its own: the same code, with fewer guarantees.

Outside, `enter` looks at what is needed, makes or finds the namespaces, and turns this process, whose id stays, into
the same program inside them.  Inside, everything works as for root, within what the kernel then allows.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from agentlab.backends.oci.machine import Outbound
from agentlab.base.files import exclusive_lock, make_directory
from agentlab.base.process import ProgramFailed, become, which
from agentlab.daemon import prerequisites
from agentlab.daemon.enclosure import Enclosure
from agentlab.daemon.ground import prepare_directories, refuse
from agentlab.daemon.settings import Settings
from agentlab.errors import PreflightFailed

MARK = "AGENTLAB_ROOTLESS"
THROUGH_PASTA = (
    "The network passes through pasta, a program of the daemon's user, and ends with it; the host's own addresses are "
    "those that it had when the daemon started."
)


def inside() -> bool:
    """Whether this process has been through `enter`."""
    return os.environ.get(MARK) == "1" and os.geteuid() == 0


def user_id() -> int:
    """Whose directories are meant: this process's user, as the host knows that one."""
    if not inside():
        return os.getuid()
    # A process sees its own map in the terms of the surrounding namespace: inside, outside, count.
    lines = (line.split() for line in Path("/proc/self/uid_map").read_text().splitlines())
    return next(int(line[1]) for line in lines if line[0] == "0")


def enter(settings: Settings) -> None:
    """For root, and inside, nothing.  For another user, go on inside: does not return.

    Raises PreflightFailed with everything that is missing and how to get it, PermissionMissing.
    """
    if os.geteuid() == 0:
        return
    if os.environ.get(MARK):
        raise PreflightFailed(
            cause=f"{MARK} is set, but this process is not root of a namespace", what_to_do=f"Unset {MARK}."
        )
    prepare_directories(settings)
    with exclusive_lock(settings.run_dir / "rootless.lock", wait=True):
        holder = asyncio.run(_outside(settings))
    where = [f"--wdns={Path.cwd()}", "--target", str(holder), "--user", "--mount", "--net"]
    program = [sys.executable, *sys.orig_argv[1:]]
    become([which("nsenter") or "nsenter", *where, "--", *program], os.environ | {MARK: "1"})


def enclosure(settings: Settings) -> Enclosure:
    """This installation's namespaces."""
    return Enclosure(folder=settings.run_dir / "rootless")


def confirm(settings: Settings) -> None:
    """Raises PreflightFailed if the namespaces were given up, by a daemon that ended, while this one entered them."""
    if inside() and enclosure(settings).holder is None:
        raise PreflightFailed(cause="another daemon ended while this one started", what_to_do="Start it again.")


def leave(settings: Settings) -> None:
    """Give the namespaces up if no sandbox is left in them; quiet for root.  Called under the daemon's own lock."""
    if not inside():
        return
    homes = settings.state_dir / "oci" / "sandboxes"
    if not homes.is_dir() or not any(homes.iterdir()):
        with exclusive_lock(settings.run_dir / "rootless.lock", wait=True):
            enclosure(settings).fall()


def outbound(settings: Settings) -> Outbound | None:
    """What leads out of the network that sandboxes are in; None where that is the host's own."""
    if not inside():
        return None
    problem = enclosure(settings).way_out
    return Outbound(possible=problem is None, sentence=THROUGH_PASTA if problem is None else problem)


async def _outside(settings: Settings) -> int:
    refuse(await prerequisites.look(os.getuid()))
    standing = enclosure(settings)
    make_directory(standing.folder)
    try:
        return await standing.stand(os.getuid(), os.getgid())
    except (ProgramFailed, OSError) as error:
        raise PreflightFailed(
            cause=f"namespaces for a daemon without root could not be made: {error}",
            what_to_do="docs/operating/rootless.md names what is needed; or run the daemon as root.",
        ) from error
