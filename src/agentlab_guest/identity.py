"""Becoming this machine and no other: a clone wakes up with everything that its template had.

The order matters.  The random generator comes first, because whatever is derived from it before would be the same in
every clone.  Nothing is forked for it, except what makes ssh host keys, which happens beside.
"""

from __future__ import annotations

import glob
import os
import socket
import time
from collections.abc import Callable, Generator

from agentlab_guest import kernel, netlink
from agentlab_guest.orders import Identify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agentlab_guest.invitation import Invitation

SSHD = "/usr/sbin/sshd"
HOST_KEYS = "/etc/ssh/ssh_host_*"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
RUN_DIR = "/run/agentlab"
SECRETS_BYTES = 64 << 20
_SEED_BYTES_MAX = 64
_SSH_ENABLED = (
    "/etc/systemd/system/multi-user.target.wants/ssh.service",
    "/etc/systemd/system/multi-user.target.wants/sshd.service",
)
Work = Generator["list[str] | float", "tuple[int, str]", str]


class StepFailed(Exception):
    """A step of becoming somebody went wrong; the machine must not be used."""


def become(order: Identify, *, machine: bool) -> dict[str, float]:
    """Carry out all steps; how long each took, in ms.  Raises StepFailed.

    Without `machine` this is a process on somebody's machine, which is not touched: only entropy is added.
    """
    steps: list[tuple[str, Callable[[], None]]] = [("entropy", lambda: kernel.reseed(bytes.fromhex(order.entropy)))]
    if machine:
        steps += _steps(order)
    took: dict[str, float] = {}
    for name, step in steps:
        began = time.perf_counter()
        try:
            step()
        except (OSError, ValueError) as error:
            raise StepFailed(f"{name}: {error}") from error
        took[name] = round((time.perf_counter() - began) * 1000, 3)
    return took


def _steps(order: Identify) -> list[tuple[str, Callable[[], None]]]:
    return [
        ("clock", lambda: None if order.clock_ns is None else set_clock(order.clock_ns)),
        ("machine_id", lambda: _machine_id(order.machine_id)),
        ("boot_id", lambda: _boot_id(order.boot_id)),
        ("hostname", lambda: _hostname(order.hostname)),
        ("ssh", lambda: _forget_host_keys() if order.machine_id is not None else None),
        ("secrets", lambda: _secrets(order.secrets_bytes)),
        ("network", lambda: _network(order)),
        ("grow", lambda: _grow() if order.grow else None),
    ]


def join(invitation: Invitation) -> None:
    """Be on the network that the daemon is reached by.  Raises StepFailed.

    A machine that has its address already is left as it is: this program may have been started anew.
    """
    try:
        # The token is nobody else's: no two machines that follow the same template go on with the same randomness.
        kernel.reseed(invitation.token.encode()[:_SEED_BYTES_MAX])
        if (own := invitation.network) is not None:
            _join(invitation, *own)
    except OSError as error:
        raise StepFailed(f"network: {error}") from error


def set_clock(clock_ns: int) -> None:
    """Set the clock, in ns since the epoch.  OSError."""
    time.clock_settime_ns(time.CLOCK_REALTIME, clock_ns)


def new_host_keys() -> Work:
    """Make an ssh host key where there is none, and let sshd take it; the commands to run, one after the other."""
    if os.path.exists(SSHD) and not glob.glob(HOST_KEYS):
        status, text = yield ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/ssh/ssh_host_ed25519_key"]
        if status:
            return f"no ssh host key could be made: {text}"
        if any(os.path.islink(each) for each in _SSH_ENABLED):
            yield ["systemctl", "restart", "--no-block", "ssh.service"]
    return ""


def _machine_id(value: str | None) -> None:
    if value is None:
        return
    # In place: the file may be a mount of its own.
    _write("/etc/machine-id", f"{value}\n")
    if os.path.isfile("/var/lib/dbus/machine-id") and not os.path.islink("/var/lib/dbus/machine-id"):
        _write("/var/lib/dbus/machine-id", f"{value}\n")


def _boot_id(value: str | None) -> None:
    """The kernel's own cannot be changed; programs that ask by the file see another."""
    if value is None:
        return
    path = f"{RUN_DIR}/boot_id"
    _write(path, f"{value}\n")
    os.chmod(path, 0o444)
    if not os.path.samefile(path, BOOT_ID):  # as in a fork of what was itself restored
        kernel.mount(path, BOOT_ID, "none", kernel.MS_BIND)


def _hostname(value: str | None) -> None:
    if value is None:
        return
    socket.sethostname(value)
    _write("/etc/hostname", f"{value}\n")
    try:
        with open("/etc/hosts", encoding="utf-8", errors="surrogateescape") as file:
            kept = [line for line in file.read().splitlines() if line.split()[:1] != ["127.0.1.1"]]
    except FileNotFoundError:
        kept = ["127.0.0.1 localhost"]
    text = "\n".join([*kept, f"127.0.1.1 {value}", ""])
    with open("/etc/hosts", "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)


def _forget_host_keys() -> None:
    for path in glob.glob(HOST_KEYS):
        os.unlink(path)


def _secrets(size: int | None) -> None:
    if size is not None and os.path.ismount(RUN_DIR):
        kernel.mount("tmpfs", RUN_DIR, "tmpfs", kernel.MS_REMOUNT | kernel.MS_NOSUID | kernel.MS_NODEV, f"size={size}")


def _join(invitation: Invitation, address: str, prefix_length: int) -> None:
    name = netlink.interface(invitation.mac)
    if name is None:
        raise OSError(f"the machine has no network interface{' ' + invitation.mac if invitation.mac else ''}")
    if not netlink.bears(name, address):
        netlink.set_up(
            name,
            mac=None,
            address=address,
            prefix_length=prefix_length,
            gateway=invitation.gateway,
            mtu=invitation.mtu,
        )
    if invitation.nameserver is not None:
        _name_server(invitation.nameserver)


def _network(order: Identify) -> None:
    if order.mac is None or order.address is None:
        return
    name = netlink.interface()
    if name is None:
        raise OSError("the machine has no network interface")
    netlink.set_up(
        name,
        mac=order.mac,
        address=order.address,
        prefix_length=order.prefix_length or 0,
        gateway=order.gateway,
        mtu=order.mtu,
    )
    if order.nameserver is not None:
        _name_server(order.nameserver)


def _name_server(address: str) -> None:
    if os.path.islink("/etc/resolv.conf"):
        os.unlink("/etc/resolv.conf")
    _write("/etc/resolv.conf", f"nameserver {address}\noptions edns0\n")


def _grow() -> None:
    kernel.grow("/")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
