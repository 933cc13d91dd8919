"""The options of set-up commands, one row each.

The client's program shows them, the daemon's program, which the client's becomes, takes them: two programs that do not
import each other, and one definition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import click


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionRow:
    """One option.  A `list` may be given several times; one without default is None when it is left out."""

    name: str  # with dashes
    help: str
    kind: Literal["text", "flag", "list"] = "text"
    metavar: str | None = None
    default: str | None = None

    @property
    def key(self) -> str:
        """Its name among the values."""
        return self.name.strip("-").replace("-", "_")


PROXMOX_DOC = """Set a Proxmox VE cluster up: role, user, token, pool and rights, with the least that is needed.

Shows each step before anything is changed, and asks.  The administrator's password comes from a prompt or from
standard input, is used once and kept nowhere.  What is there and right is left alone, so that it may be run again.
"""
PROXMOX: tuple[OptionRow, ...] = (
    OptionRow(name="--endpoint", kind="list", metavar="URL", help="Such as https://pve1.example.org:8006."),
    OptionRow(name="--fingerprint", kind="list", metavar="SHA256", help="See `pvenode cert info`."),
    OptionRow(name="--ca-file", metavar="PATH", help="Instead: a copy of /etc/pve/pve-root-ca.pem."),
    OptionRow(name="--admin", metavar="USER", default="root@pam", help="Who logs in, once; or a token's id."),
    OptionRow(name="--pool", metavar="NAME", default="agentlab", help="The pool that sandboxes belong to."),
    OptionRow(name="--storage", metavar="NAME", default="local-lvm", help="The storage of sandboxes' disks."),
    OptionRow(name="--uploads", metavar="NAME", default="local", help="The storage that takes images of templates."),
    OptionRow(name="--bridge", metavar="NAME", default="vmbr0", help="The bridge or SDN vnet that sandboxes are on."),
    OptionRow(name="--zone", metavar="NAME", help="The SDN zone of the bridge, if it cannot be found."),
    OptionRow(name="--template", kind="list", metavar="NAME=VMID", help="A template that you made instead of ours."),
    OptionRow(name="--user", metavar="USER", default="agentlab@pve", help="Whose token it will be."),
    OptionRow(name="--token", metavar="NAME", default="daemon", help="The token's name."),
    OptionRow(name="--token-file", metavar="PATH", help="Where its secret goes; beside agentlabd.yaml if left out."),
    OptionRow(name="--subnet", metavar="NETWORK", help="For the settings: the bridge's, such as 10.80.0.0/24."),
    OptionRow(name="--addresses", metavar="FIRST-LAST", help="For the settings: what sandboxes may have of it."),
    OptionRow(name="--guest-address", metavar="ADDRESS:PORT", help="For the settings: the daemon, for sandboxes."),
    OptionRow(name="--minimal", kind="flag", help="Only what is needed, without what makes it better."),
    OptionRow(name="--enable-import", kind="flag", help="Let the storage of --uploads take images, if it does not."),
    OptionRow(name="--enable-firewall", kind="flag", help="Enable the datacenter's firewall, if it is off."),
    OptionRow(name="--i-have-access", kind="flag", help="Enable it although its rules may lock you out of the nodes."),
    OptionRow(name="--regenerate", kind="flag", help="Make the token anew if it exists and its secret is lost."),
    OptionRow(name="--force", kind="flag", help="Overwrite a token file that this cluster does not know."),
    OptionRow(name="--print", kind="flag", help="Only print lines for a shell on a node; nothing is asked."),
    OptionRow(name="--pve-version", metavar="8|9", default="9", help="With --print: the cluster's major version."),
    OptionRow(name="--dry-run", kind="flag", help="Log in and look, show the steps, and end."),
    OptionRow(name="--yes", kind="flag", help="Do not ask."),
)  # fmt: skip
HOST_NETWORK_DOC = """Make the bridge that sandboxes of a cluster are on, on this host, with its rules.  Needs root."""
HOST_NETWORK: tuple[OptionRow, ...] = (
    OptionRow(name="--bridge", metavar="NAME", default="agbr0", help="The bridge's name."),
    OptionRow(name="--subnet", metavar="NETWORK", default="10.80.0.0/24", help="The guests' network."),
    OptionRow(name="--uplink", metavar="NAME", default="auto", help="The way to the internet; the default route's."),
    OptionRow(name="--guest-port", metavar="PORT", default="8811", help="Where guests call home."),
    OptionRow(name="--guest-address", metavar="ADDRESS", help="Where the daemon is, if not on this host."),
    OptionRow(name="--nameserver", metavar="ADDRESS", help="Where guests ask for names, if not on the internet."),
    OptionRow(name="--dry-run", kind="flag", help="Show what would be done, and change nothing."),
    OptionRow(name="--undo", kind="flag", help="Take it away again."),
    OptionRow(name="--yes", kind="flag", help="Do not ask."),
    OptionRow(name="--root", metavar="PATH", help="Only write files, below this folder."),
)


def parameters(rows: Sequence[OptionRow]) -> list[click.Parameter]:
    """The rows as click takes them."""
    return [
        click.Option(
            [row.name, row.key],
            is_flag=row.kind == "flag",
            multiple=row.kind == "list",
            default=row.default if row.kind == "text" else () if row.kind == "list" else False,
            show_default=row.default is not None,
            metavar=row.metavar,
            help=row.help,
        )
        for row in rows
    ]


def arguments(rows: Sequence[OptionRow], values: Mapping[str, Any]) -> list[str]:
    """The words that give these values again; what is left at its default is left out."""
    words: list[str] = []
    for row in rows:
        value = values.get(row.key)
        if row.kind == "flag":
            words += [row.name] if value else []
        elif row.kind == "list":
            words += [f"{row.name}={each}" for each in value or ()]
        elif value is not None and value != row.default:
            words.append(f"{row.name}={value}")
    return words
