"""Snapshots, restores, forks and backends on the command line, against a served API."""

from __future__ import annotations

import json

import pytest
from tests.unit.cli.test_cli_served import cli

pytestmark = pytest.mark.anyio


async def run(served, *arguments: str) -> str:
    code, out, err = await cli(served.socket, *arguments)
    assert code == 0, err
    return out


async def inside(served, name: str, script: str) -> str:
    return await run(served, "sandbox", "exec", name, "sh", "-c", script)


async def test_a_sandbox_is_kept_and_restored_with_its_memory(served):
    await run(served, "sandbox", "new", "--name", "one")
    await inside(served, "one", "echo then > /root/f; echo then > /dev/shm/f")
    code, out, err = await cli(served.socket, "sandbox", "snapshot", "one", "--name", "here", "--memory")
    assert (code, out.split()[1:]) == (0, ["here", "ready"])
    assert "snapshot: snapshot" in err
    assert "provision" not in err  # what was done before is not told again
    await inside(served, "one", "echo later > /root/f; echo later > /dev/shm/f")

    code, out, err = await cli(served.socket, "sandbox", "restore", "one", "here")

    assert (code, out.split()[1:]) == (0, ["(one)", "restored,", "ready"])
    assert "restore: restore" in err
    assert await inside(served, "one", "cat /root/f; cat /dev/shm/f") == "then\nthen\n"
    assert await run(served, "sandbox", "snapshots", "one") != ""


async def test_a_stopped_sandbox_stays_stopped_when_it_is_restored(served):
    await run(served, "sandbox", "new", "--name", "one")
    await run(served, "sandbox", "snapshot", "one", "--name", "here")
    await run(served, "sandbox", "stop", "one")

    assert (await run(served, "sandbox", "restore", "one", "here")).split()[-1] == "stopped"


async def test_a_sandbox_is_forked_three_times_and_goes_on(served):
    await run(served, "sandbox", "new", "--name", "one")
    await inside(served, "one", "echo then > /root/f; echo then > /dev/shm/f")

    forks = json.loads(await run(served, "sandbox", "fork", "one", "-n", "3", "--name", "two", "--json"))

    assert [(fork["name"], fork["state"]) for fork in forks] == [
        ("two-1", "ready"),
        ("two-2", "ready"),
        ("two-3", "ready"),
    ]
    assert len({fork["address"] for fork in forks}) == 3
    assert await inside(served, "two-3", "cat /root/f; cat /dev/shm/f") == "then\nthen\n"
    one, three = (
        await inside(served, "one", "cat /etc/machine-id"),
        await inside(served, "two-3", "cat /etc/machine-id"),
    )
    assert one != three
    assert "fork of:" in await run(served, "sandbox", "show", "two-1")


async def test_a_removed_snapshot_is_gone_and_cannot_be_restored(served):
    await run(served, "sandbox", "new", "--name", "one")
    await run(served, "sandbox", "snapshot", "one", "--name", "here")
    await run(served, "sandbox", "snapshot-remove", "one", "here")

    code, _, err = await cli(served.socket, "sandbox", "restore", "one", "here")

    assert code == 4
    assert "has no snapshot 'here'" in err


async def test_backends_are_listed_and_shown(served):
    assert "usable" in await run(served, "backend", "list")
    assert "memory-snapshot" in await run(served, "backend", "show", "fake")
    code, _, err = await cli(served.socket, "backend", "show", "fale")
    assert code == 4
    assert "did you mean 'fake'" in err.lower()
