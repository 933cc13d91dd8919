"""One process for many callers."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from agentlab.model.network import NetworkMode, Port
from agentlab.network import addresses, ruleset
from agentlab.network.interface import NetworkError
from agentlab.network.nft import Applied, Nft
from agentlab.testing.netlab import NetLab

BASE = ruleset.Base(installation="x3k2abcd", subnet=addresses.DEFAULT_SUBNET)

pytestmark = pytest.mark.anyio


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nft that writes down what it is given, and refuses scripts that say `bad`."""
    program, log = tmp_path / "nft", tmp_path / "calls"
    program.write_text(
        '#!/bin/sh\nsleep 0.05\nif [ "$1" = --echo ]; then given=$(cat); echo "$given" | tr "\\n" ";" >>'
        f' {log}; echo >> {log}; case "$given" in *bad*) echo no such thing >&2; exit 1;; esac;'
        ' else echo "table $4 $5 {"; echo "}"; fi\n'
    )
    program.chmod(0o755)
    log.touch()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return log


async def test_scripts_that_wait_together_go_in_one_transaction(calls: Path) -> None:
    nft = Nft("t")

    await asyncio.gather(*(nft.apply(f"add {number}\n") for number in range(10)))

    assert [len(line.split(";")) for line in calls.read_text().splitlines()] == [2, 10]


async def test_a_refused_script_fails_alone(calls: Path) -> None:
    nft = Nft("t")
    scripts = ["first\n", "good\n", "bad\n", "fine\n"]

    outcomes = await asyncio.gather(*(nft.apply(each) for each in scripts), return_exceptions=True)

    assert [type(each) for each in outcomes] == [Applied, Applied, NetworkError, Applied]
    assert "no such thing" in str(outcomes[2])
    assert calls.read_text().splitlines()[-3:] == ["good;", "bad;", "fine;"]


async def test_a_cancelled_caller_does_not_take_the_others_along(calls: Path) -> None:
    nft = Nft("t")
    tasks = [asyncio.ensure_future(nft.apply(f"add {number}\n")) for number in range(4)]
    await asyncio.sleep(0.01)

    tasks[0].cancel()
    tasks[2].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(each) for each in outcomes] == [asyncio.CancelledError, Applied, asyncio.CancelledError, Applied]
    assert calls.read_text().splitlines()[-1] == "add 1;add 3;"


async def test_a_cancelled_reader_does_not_take_the_others_along(calls: Path) -> None:
    nft = Nft("t")
    tasks = [asyncio.ensure_future(nft.listing()) for _ in range(3)]
    await asyncio.sleep(0.01)

    tasks[0].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert [each is not None and not isinstance(each, BaseException) for each in outcomes[1:]] == [True, True]


async def test_a_missing_nft_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "nft"
    broken.write_text("not a program")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(NetworkError, match="nft") as caught:
        await Nft("t").apply("add table inet t\n")

    assert "apt-get install nftables" in caught.value.remedy


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="changes rules in a network namespace, which needs root")
async def test_a_change_by_anyone_else_makes_the_next_transaction_prove_nothing() -> None:
    async with NetLab() as lab:
        with lab.on_host():
            nft = Nft(BASE.table)
            first = await nft.apply(ruleset.render(BASE))
            nft.trust(first)

            alone = await nft.apply(ruleset.add_port(BASE, _port(1)))
            again = await nft.apply(ruleset.add_port(BASE, _port(1)))
            await lab.on(lab.host, "nft", "add", "table", "inet", "foreign")
            after = await nft.apply(ruleset.add_port(BASE, _port(2)))

    assert alone.proves(_port(1))
    assert not alone.proves(_port(2))
    assert not again.proves(_port(1))  # the kernel added nothing, so it said nothing
    assert not after.proves(_port(2))
    assert after.added.holds(_port(2))


def _port(slot: int) -> Port:
    return addresses.make_port(BASE.installation, BASE.subnet, f"sb-{slot}", slot, NetworkMode.NAT)
