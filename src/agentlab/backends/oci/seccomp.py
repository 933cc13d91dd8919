"""The system calls that a sandbox may make: a list of what is allowed; everything else is refused."""

from __future__ import annotations

import errno
import platform
from typing import Any

from agentlab.backends.oci.syscall_names import ALLOWED, NAMESPACES, REFUSED

_ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
_NEW_NAMESPACES = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
_FAMILIES = (1, 2, 10, 16)  # unix, inet, inet6, netlink
# Every other family, because a refused family must answer EAFNOSUPPORT: 3-9 and 11-15 singly, then all above netlink.
# Among them AF_ALG, and AF_VSOCK, which reaches the hypervisor.
_OTHER_FAMILIES = (0, *range(3, 10), *range(11, 16))


def profile(*, nested: bool, machine: str = "") -> dict[str, Any]:
    """The `linux.seccomp` block of a container's configuration.

    Unknown calls answer ENOSYS, so that programs fall back to older ones; calls known to be dangerous answer EPERM.
    Only the native architecture is admitted: 32-bit calls would pass by the rules on arguments.  With `nested`, user
    namespaces and mounts are allowed, as bubblewrap needs them.
    """
    rules = [_rule(sorted(ALLOWED), "ALLOW"), *_personality(), *_socket(), *_clone(nested=nested)]
    refused = sorted(REFUSED) if nested else sorted(REFUSED | NAMESPACES)
    rules.append(_rule(refused, "ERRNO", errno.EPERM))
    if nested:
        rules.append(_rule(sorted(NAMESPACES), "ALLOW"))
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "architectures": [_ARCHITECTURES.get(machine or platform.machine(), "SCMP_ARCH_NATIVE")],
        "syscalls": rules,
    }


def _clone(*, nested: bool) -> list[dict[str, Any]]:
    if nested:
        return [_rule(["clone", "clone3"], "ALLOW")]
    # clone3 hides its flags behind a pointer: ENOSYS makes the C library use clone, whose flags can be checked.
    mask = sum(_NEW_NAMESPACES)
    return [
        _rule(["clone3"], "ERRNO", errno.ENOSYS),
        _rule(["clone"], "ALLOW", arguments=[_argument(0, mask, "MASKED_EQ", 0)]),
        *(_rule(["clone"], "ERRNO", errno.EPERM, arguments=[_argument(0, f, "MASKED_EQ", f)]) for f in _NEW_NAMESPACES),
    ]


def _socket() -> list[dict[str, Any]]:
    return [
        *(_rule(["socket"], "ALLOW", arguments=[_argument(0, family, "EQ")]) for family in _FAMILIES),
        *(
            _rule(["socket"], "ERRNO", errno.EAFNOSUPPORT, arguments=[_argument(0, family, "EQ")])
            for family in _OTHER_FAMILIES
        ),
        _rule(["socket"], "ERRNO", errno.EAFNOSUPPORT, arguments=[_argument(0, max(_FAMILIES), "GT")]),
    ]


def _personality() -> list[dict[str, Any]]:
    return [_rule(["personality"], "ALLOW", arguments=[_argument(0, value, "EQ")]) for value in _PERSONALITIES]


def _rule(
    names: list[str], action: str, number: int | None = None, arguments: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": f"SCMP_ACT_{action}"}
    if number is not None:
        rule["errnoRet"] = int(number)
    if arguments:
        rule["args"] = arguments
    return rule


def _argument(index: int, value: int, operator: str, second: int | None = None) -> dict[str, Any]:
    argument: dict[str, Any] = {"index": index, "value": value, "op": f"SCMP_CMP_{operator}"}
    if second is not None:
        argument["valueTwo"] = second
    return argument
