"""What Proxmox VE says, shortened for people and freed of what may be secret.  Pure."""

from __future__ import annotations

import re

from agentlab.base.text import one_line

LINE_LENGTH_MAX = 300

# The command line of QEMU stands whole in some messages: thousands of characters, the guest's serial among them.
# Nothing of it is kept but its end, where the reason stands; if the end is cut off, nothing is.
_QEMU = re.compile(r"command '/usr/bin/kvm (?:.*' failed:|.*)", re.DOTALL)
# Task logs repeat what was set.  A serial is how a sandbox is told who it is.
_SECRET = re.compile(r"\b(serial|cipassword|password|sshkeys)([= ]+)('[^']*'|\"[^\"]*\"|[^,\s']+)")


def plain(text: str, length_max: int = LINE_LENGTH_MAX) -> str:
    """One bounded printable line, without QEMU's command line and without values that may be secret."""
    short = _QEMU.sub("command 'kvm …' failed:", text)
    return one_line(_SECRET.sub(r"\1\2•••", short), length_max)
