"""What a set-up gives is what the backend needs, and the doctor names each thing that is taken away again."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.proxmox_pveum import calls
from tests.contract.proxmox_setup import GRANTEE, Bench, bench

from agentlab.backends.proxmox.certificate import Endpoint
from agentlab.backends.proxmox.privileges import ROLES, Privilege, Where, of_version
from agentlab.backends.proxmox.setup import Wanted, script
from agentlab.backends.proxmox.setup_steps import Call
from agentlab.backends.proxmox.shelf import ClusterImage
from agentlab.base.clock import SystemClock
from agentlab.base.entropy import SeededEntropy
from agentlab.daemon.cluster import ClusterParts, make_cluster
from agentlab.daemon.settings import load_settings
from agentlab.daemon.setup_proxmox import Outcome
from agentlab.daemon.setup_settings import Suggested, render
from agentlab.errors import SetupFailed
from agentlab.model.finding import Finding
from agentlab.model.ids import Digest, InstallationId, SandboxId
from agentlab.model.network import NetworkMode
from agentlab.model.resources import Resources
from agentlab.model.sandbox import Mark, Power, SandboxSpec
from agentlab.testing.proxmox.images import small_qcow2

pytestmark = pytest.mark.anyio
INSTALLATION, SANDBOX = InstallationId("ab12cd34"), SandboxId("sb-22222222")
GIB = 1 << 30


@pytest.fixture(params=["8.4", "9.2"])
async def on(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """Both versions, set up."""
    async with bench(tmp_path, request.param) as found:
        yield found


@pytest.fixture
async def on9(tmp_path: Path) -> AsyncIterator[Bench]:
    """The newest version."""
    async with bench(tmp_path) as found:
        yield found


def settings_text(on: Bench, outcome: Outcome, templates: Mapping[str, int]) -> str:
    """What set-up prints for the daemon."""
    return render(
        Suggested(
            endpoints=[on.sim.url],
            fingerprints=sorted(outcome.trust.fingerprints),
            ca_file=None,
            token_file=on.folder / "proxmox.token",
            grantee=outcome.plan.grantee,
            templates=templates,
            subnet="10.80.0.0/24",
            addresses="10.80.0.100-10.80.0.199",
            guest_address="10.80.0.2:8811",
        )
    )


async def daemon(on: Bench, outcome: Outcome, templates: Mapping[str, int] | None = None) -> ClusterParts:
    """The backend as the daemon makes it of exactly these settings."""
    file = on.folder / "agentlabd.yaml"
    file.write_text(settings_text(on, outcome, templates or {}))
    settings = load_settings(file, {}, 0, on.folder)

    async def image_of(digest: Digest) -> ClusterImage:
        disk = on.folder / "image.qcow2"
        disk.write_bytes(small_qcow2(3 * GIB))
        return ClusterImage(digest=digest, disk=disk, guest_version="1")

    async def replayed(sandbox: SandboxId) -> None:
        raise AssertionError(sandbox)

    return await make_cluster(
        settings.backends.proxmox,
        installation=INSTALLATION,
        state_dir=on.folder / "state",
        image_of=image_of,
        relay=NoRelay(),
        replayed=replayed,
        clock=SystemClock(),
        entropy=SeededEntropy(3),
    )


class NoRelay:
    """No guest comes home in these tests."""

    async def __call__(self, sandbox: SandboxId, reader: object, writer: object) -> None:
        raise AssertionError(sandbox)


def spec(parts: ClusterParts) -> SandboxSpec:
    return SandboxSpec(
        mark=Mark(installation=INSTALLATION, sandbox=SANDBOX, nonce="00112233445566778899aabbccddeeff"),
        name="one",
        template="base",
        template_digest=Digest("ab" * 32),
        slot=1,
        resources=Resources(cpus=1, memory_bytes=GIB, disk_bytes=4 * GIB, pids_max=512),
        network=NetworkMode.NAT,
        port=parts.network.port(SANDBOX, 1, NetworkMode.NAT),
        hostname="one",
        nameserver="10.80.0.1",
    )


async def findings(parts: ClusterParts) -> list[Finding]:
    return [each for each in (await parts.backend.probe()).findings if not each.ok]


async def test_the_token_may_do_all_that_the_backend_does(on: Bench) -> None:
    parts = await daemon(on, await on.set_up())
    try:
        assert await findings(parts) == []
        wanted = spec(parts)
        await parts.backend.create(wanted)  # which also uploads and makes the template
        await parts.backend.arm(wanted)
        [seen] = await parts.backend.list()
        await parts.backend.destroy(wanted.mark)

        assert seen.power is Power.ARMED
        assert await parts.backend.list() == []
    finally:
        await parts.backend.close()


async def test_with_a_template_of_an_administrator_nothing_is_granted_for_uploads(on: Bench) -> None:
    on.sim.add_template(9000, "thin")
    outcome = await on.set_up(grantee=replace(GRANTEE, uploads=(), templates=(9000,)), templates={"base": 9000})
    parts = await daemon(on, outcome, {"base": 9000})
    try:
        assert await findings(parts) == []
        wanted = spec(parts)
        await parts.backend.create(wanted)
        await parts.backend.arm(wanted)
        await parts.backend.destroy(wanted.mark)

        assert "AgentLabUploads" not in on.sim.cluster.access.roles
    finally:
        await parts.backend.close()


@pytest.mark.parametrize(
    ("version", "row"),
    [(version, row) for version in (8, 9) for row in of_version(version)],
    ids=lambda each: f"{each.where.name}-{each.name}" if isinstance(each, Privilege) else str(each),
)
async def test_each_privilege_that_is_taken_away_is_named_and_its_command_repairs_it(
    tmp_path: Path, version: int, row: Privilege
) -> None:
    async with bench(tmp_path, {8: "8.4", 9: "9.2"}[version]) as on:
        if row.where is Where.TEMPLATE:
            on.sim.add_template(9000, "thin")
            grantee = replace(GRANTEE, uploads=(), templates=(9000,))
            parts = await daemon(on, await on.set_up(grantee=grantee), {"base": 9000})
        else:
            parts = await daemon(on, await on.set_up())
        try:
            roles, role = on.sim.cluster.access.roles, ROLES[row.where]
            roles[role] -= {row.name}

            broken = await findings(parts)
            [named] = [each for each in broken if each.name.startswith("right ")]
            command = named.remedy.removeprefix("As root on a node: ")
            await on.as_administrator(calls([command]))

            assert named.name == f"right {row.name}"
            assert named.fatal is (not row.optional or row.builds)
            assert row.needed_for in named.detail
            assert await findings(parts) == []
        finally:
            await parts.backend.close()


async def test_a_token_without_entries_of_its_own_is_told_so_for_every_privilege(on9: Bench) -> None:
    parts = await daemon(on9, await on9.set_up())
    try:
        for entries in on9.sim.cluster.access.acl.values():
            entries.pop(("token", "agentlab@pve!daemon"), None)

        broken = await findings(parts)

        rights = {each.name for each in broken if each.name.startswith("right ")}
        assert rights == {f"right {each.name}" for each in of_version(9)}
        for each in broken:
            if each.name.startswith("right "):
                await on9.as_administrator(calls([each.remedy.removeprefix("As root on a node: ")]))
        assert await findings(parts) == []
    finally:
        await parts.backend.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"expire": 1_000_000_000}, "Authentication failed"),
        ({"secret": "another"}, "Authentication failed"),
    ],
)
async def test_a_token_that_is_not_accepted_any_more_is_told_as_such(
    on9: Bench, change: dict[str, object], words: str
) -> None:
    parts = await daemon(on9, await on9.set_up())
    try:
        token = on9.sim.cluster.access.users["agentlab@pve"].tokens["daemon"]
        for name, value in change.items():
            setattr(token, name, value)

        [broken] = await findings(parts)

        assert broken.name == "cluster"
        assert words in broken.detail
        assert "whether it or its user has expired" in broken.remedy
    finally:
        await parts.backend.close()


# Lines for a shell


@pytest.mark.parametrize("flag", [True, False])
async def test_the_printed_lines_make_the_same_as_set_up_itself(on: Bench, tmp_path: Path, flag: bool) -> None:
    version = on.sim.cluster.version
    wanted = Wanted(grantee=replace(GRANTEE, version=on.sim.cluster.major), minimal=flag)
    async with bench(tmp_path / "other", version) as other:
        (tmp_path / "other").mkdir()
        await other.set_up(minimal=flag)

        await on.as_administrator(calls(script(wanted)))

        mine, theirs = on.sim.cluster.access, other.sim.cluster.access
        assert mine.roles == theirs.roles
        assert mine.acl == theirs.acl
        assert mine.pools == theirs.pools
        assert {name: user.facts for name, user in mine.users.items()} == {
            name: user.facts for name, user in theirs.users.items()
        }


async def test_each_step_of_a_plan_is_the_same_as_its_line(on: Bench) -> None:
    on.sim.cluster.access.roles["AgentLabStorage"] = frozenset({"Datastore.Audit"})
    on.sim.cluster.stores["local"].content = ["iso"]
    on.sim.cluster.firewall.options.clear()
    outcome = await on.set_up(dry_run=True, enable_import=True, enable_firewall=True)

    for step in outcome.plan.steps:
        assert [plain(each) for each in calls([step.command])] == [plain(each) for each in step.calls], step.does


def plain(call: Call) -> tuple[str, str, dict[str, str]]:
    """Without what the API takes for granted or guards against races with."""
    params = {key: str(int(value) if isinstance(value, bool) else value) for key, value in call.params.items()}
    return call.method, call.path, {key: value for key, value in params.items() if key not in ("propagate", "digest")}


# The program


async def run(*words: str, stdin: str = "", folder: Path) -> tuple[int, str, str]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agentlab.cli.main", "setup", "proxmox", *words,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"AGENTLAB_DIR": str(folder), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    out, err = await child.communicate(stdin.encode())
    assert child.returncode is not None
    return child.returncode, out.decode(), err.decode()


async def test_the_program_sets_up_with_the_password_from_standard_input(on9: Bench, tmp_path: Path) -> None:
    words = [f"--endpoint={on9.sim.url}", f"--fingerprint={on9.sim.fingerprint}", "--storage=thin", "--yes"]
    words += ["--subnet=10.80.0.0/24", "--addresses=10.80.0.100-10.80.0.199", "--guest-address=10.80.0.2:8811"]
    password = on9.sim.administrator[1]

    status, out, err = await run(*words, stdin=f"{password}\n", folder=tmp_path)
    again, told, _ = await run(*words, "--json", stdin=f"{password}\n", folder=tmp_path)

    assert (status, again) == (0, 0), err
    (tmp_path / "agentlabd.yaml").write_text(out)
    settings = load_settings(tmp_path / "agentlabd.yaml", {}, 0, tmp_path).backends.proxmox
    assert settings.token_file == tmp_path / "config" / "proxmox.token"
    assert settings.fingerprints == (on9.sim.fingerprint,)
    assert json.loads(told)["steps"] == []
    assert json.loads(told)["lacking"] == []
    assert password not in out + err + told


async def test_the_program_tells_errors_with_cause_and_remedy(on9: Bench, tmp_path: Path) -> None:
    words = [f"--endpoint={on9.sim.url}", f"--fingerprint={on9.sim.fingerprint}", "--yes"]

    status, out, err = await run(*words, stdin="wrong\n", folder=tmp_path)
    nobody, _, asked = await run(f"--endpoint={on9.sim.url}", stdin="", folder=tmp_path)
    _, _, problem = await run(*words, "--json", stdin="wrong\n", folder=tmp_path)

    assert (status, out, nobody) == (9, "", 2)
    assert "does not accept the log-in of root@pam" in err
    assert "remedy: " in err
    assert f"--fingerprint {on9.sim.fingerprint}" in asked
    assert json.loads(problem)["code"] == "setup/failed"


async def test_an_address_where_nobody_answers_is_told(on9: Bench) -> None:
    with pytest.raises(SetupFailed, match="cannot connect"):
        await on9.set_up(endpoints=[Endpoint(host="127.0.0.1", port=1)], trust=None)


async def test_the_least_is_enough_for_all_that_the_backend_does(on: Bench) -> None:
    parts = await daemon(on, await on.set_up(minimal=True))
    try:
        wanted = spec(parts)
        await parts.backend.probe()
        await parts.backend.create(wanted)
        await parts.backend.arm(wanted)
        await parts.backend.destroy(wanted.mark)

        assert [each.name for each in await findings(parts) if each.fatal] == []
    finally:
        await parts.backend.close()
