"""The world has doors: each of time, randomness, programs, sockets, SQLite and tasks enters through few modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

import pytest
from tests.tidy.sources import Module, imported, modules, under

# What is imported, and who may, each with its reason.  A module that no longer does is struck off.
DOORS: Mapping[tuple[str, ...], Mapping[str, str]] = {
    ("time",): {
        "agentlab.base.clock": "the door",
        "agentlab.daemon.lifecycle": "systemd's reload message bears the system's monotonic clock",
        "agentlab.daemon.logs": "log lines bear the wall clock",
        "agentlab.daemon.main": "measures its own start from the first instruction",
        "agentlab_guest.git": "the guest stands alone: the time limit of one git run",
        "agentlab_guest.identity": "sets the clock of a machine that was restored",
        "agentlab_guest.reactor": "the resident guest program's own door: its one loop",
        "agentlab_guest.runner": "the guest's own door: its one loop",
        "agentlab_guest.state": "waits for the lock of a guest that is being ended",
    },
    ("random", "secrets", "uuid"): {"agentlab.base.entropy": "the door"},
    ("subprocess", "pty", "multiprocessing"): {
        "agentlab.base.process": "the door",
        "agentlab.backends.oci.commands": "names the type of a child that the door started",
        "agentlab.backends.oci.execution": "names the type of a child that the door started",
        "agentlab.backends.oci.runtime": "names the type of a child that the door started",
        "agentlab.backends.qemu.process": "names the type of a child that the door started",
        "agentlab.backends.qemu.vm": "names the type of a child that the door started",
        "agentlab_guest.git": "the guest stands alone: it runs git",
        "agentlab_guest.processes": "the guest's own door: it runs the agent",
        "agentlab_guest.spawn": "the resident guest program's own door: it runs commands",
    },
    ("socket",): {
        "agentlab_guest.identity": "gives the machine its name",
        "agentlab_guest.netlink": "gives a VM's card its addresses",
        "agentlab_guest.dialled": "the control link of a VM on another machine: it calls home",
        "agentlab_guest.port": "the control link of a VM, for tests a Unix socket",
        "agentlab_guest.relays": "the guest link's socket inside a VM",
        "agentlab_guest.link": "the guest's own door: it calls home",
        "agentlab.base.inbox": "the door for descriptors that other programs hand over",
        "agentlab.backends.link.listener": "guests on other machines connect to it, after TLS and a knock",
        "agentlab.backends.qemu.monitor": "names the type of a connection that the door made",
        "agentlab.backends.qemu.sockets": "the door to sockets for virtual machines",
        "agentlab.api.listener": "binds the daemon's own socket with its mode and group",
        "agentlab.api.peer": "asks the kernel who connected",
        "agentlab.client.sync": "the client's connection",
        "agentlab.daemon.notify": "speaks to the service manager",
        "agentlab.network.inet": "names address families to netlink",
        "agentlab.network.rtnetlink": "speaks netlink",
    },
    ("apsw",): {
        "agentlab.store.connection": "the door",
        "agentlab.store.migrate": "keeps a copy before a migration",
        "agentlab.store.writer": "the one thread that writes",
    },
    ("sqlite3",): {},  # the system's library has a defect that can corrupt; apsw brings its own
    ("ctypes",): {
        "agentlab.backends.oci.syscalls": "mount calls that Python's os lacks",
        "agentlab.network.namespace": "setns, which Python 3.11 lacks",
        "agentlab_guest.kernel": "calls of the kernel that Python's os lacks",
        "agentlab_guest.processes": "becomes the reaper of its orphans, which needs prctl",
    },
    ("random.SystemRandom", "os.fork", "pickle", "shelve", "dbm"): {},
}

STREAMS = frozenset(
    {
        "open_connection", "open_unix_connection", "start_server", "start_unix_server",
        "create_connection", "create_unix_connection", "create_server", "create_unix_server",
        "create_datagram_endpoint", "connect_accepted_socket",
    }
)  # fmt: skip
STREAM_DOORS = {
    "agentlab.api.guest": "guests connect to its socket",
    "agentlab.backends.link.control": "connects to the control port of a VM",
    "agentlab.backends.link.listener": "guests on other machines connect to it, after TLS and a knock",
    "agentlab.backends.proxmox.certificate": "asks a server for its certificate before anything is sent to it",
    "agentlab.network.resolver": "answers sandboxes' questions for names",
}
PROGRAMS = frozenset(
    {"create_subprocess_exec", "create_subprocess_shell", "subprocess_exec", "system", "popen", "fork"}
)
WALL_CLOCK = frozenset({"now", "utcnow", "today"})


@pytest.mark.parametrize("names", DOORS, ids=" ".join)
def test_only_the_listed_modules_import(names: tuple[str, ...]) -> None:
    found = {module.name for module in _ours() if any(under(name, names) for name, _ in imported(module))}

    assert found == set(DOORS[names])


def test_sockets_are_opened_only_by_the_listed_modules() -> None:
    assert {module.name for module, node in _called() if node.attr in STREAMS} == set(STREAM_DOORS)


def test_programs_are_started_only_by_the_doors() -> None:
    started = {module.name for module, node in _called() if node.attr in PROGRAMS}
    opened = {module.name for module, node in _called() if _receiver(node) == "subprocess"}

    assert started == {"agentlab.base.process"}
    assert opened == {"agentlab.base.process", "agentlab_guest.git", "agentlab_guest.processes", "agentlab_guest.spawn"}


def test_the_time_of_day_is_asked_only_of_a_clock() -> None:
    asked = [
        f"{module.name}:{node.lineno}"
        for module, node in _called()
        if node.attr in WALL_CLOCK and _receiver(node) in ("datetime", "date")
    ]

    assert asked == []


def test_every_task_has_a_parent() -> None:
    loose = [
        f"{module.name}:{node.lineno}"
        for module, node in _called()
        if node.attr in ("create_task", "ensure_future")
        and module.name not in LOOSE_TASKS
        and _receiver(node) not in _groups(module)
    ]

    assert loose == []


LOOSE_TASKS = {
    "agentlab.base.tasks": "the door",
}


def _ours() -> list[Module]:
    """What runs in production; `agentlab.testing` drives it from outside, as a person or a crash would."""
    return [module for module in modules() if not under(module.name, ("agentlab.testing",))]


def _called() -> Iterator[tuple[Module, ast.Attribute]]:
    for module in _ours():
        for node in module.walk():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield module, node.func


def _receiver(node: ast.Attribute) -> str:
    return ast.unparse(node.value).removeprefix("self.")


def _groups(module: Module) -> set[str]:
    """The names that are bound to a TaskGroup."""
    return {
        ast.unparse(item.optional_vars).removeprefix("self.")
        for node in module.walk()
        if isinstance(node, ast.AsyncWith)
        for item in node.items
        if item.optional_vars is not None and ast.unparse(item.context_expr) == "asyncio.TaskGroup()"
    }
