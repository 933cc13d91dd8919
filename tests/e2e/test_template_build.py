"""Templates are built for real: Debian packages, chambers, layers, and once more without a network."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agentlab.base.clock import SystemClock
from agentlab.base.files import mounts_below, remove_tree
from agentlab.errors import NotFound, TemplateBuildFailed, TemplateInUse
from agentlab.model.template import Template
from agentlab.templates.build import TemplateBuilder
from agentlab.testing.rootfs import test_cache

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="building templates needs root"),
    pytest.mark.timeout(600),
]

TINY = "name: tiny\npackages: [jq, python3-minimal]\n"
WITH_FILES = (
    "files:\n  - {path: /opt/deep/hello, content: 'hi there', mode: 0755}\n"
    "env: {GREETING: hello}\n"
    "commands:\n  - rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/* && rm /usr/bin/jq\n"
    '  - echo "$GREETING" > /opt/greeting\n'
)


@dataclass
class Workshop:
    """A state directory that all tests here share, each with recipes of its own."""

    state: Path
    recipes: Path
    seen: list[tuple[str, str]] = field(default_factory=list)

    def builder(self, step_s_max: float = 300) -> TemplateBuilder:
        environ = {**os.environ, "SECRET_OF_THE_HOST": "hunter2"}
        return TemplateBuilder(
            self.state,
            test_cache() / "packages",
            SystemClock(),
            recipe_dirs=[self.recipes],
            environ=environ,
            step_s_max=step_s_max,
        )

    async def build(self, text: str, step_s_max: float = 300) -> Template:
        self.recipes.mkdir(exist_ok=True)
        (self.recipes / "tiny.yaml").write_text(text)
        builder = self.builder(step_s_max)
        self.seen.clear()
        return await builder.build(builder.recipe("tiny"), self.note)

    def note(self, name: str, state: str, detail: str) -> None:
        if state != "running":
            self.seen.append((name, state))

    def shell(self, template: Template, script: str) -> str:
        """What a script prints in a throw-away overlay on the template's layers."""
        lowers = ":".join(str(each) for each in self.builder().layers_of(template.digest))
        enter = f'mount -t overlay overlay -o "lowerdir={lowers}" /mnt && exec chroot /mnt bash -euc "$SCRIPT"'
        argv = ["unshare", "--mount", "--propagation", "private", "bash", "-c", enter]
        env = {"SCRIPT": script, "PATH": os.environ["PATH"]}
        return subprocess.run(argv, env=env, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    state = tmp_path_factory.mktemp("templates")
    yield state
    remove_tree(state)


@pytest.fixture
def workshop(shared: Path, tmp_path: Path) -> Workshop:
    return Workshop(state=shared, recipes=tmp_path / "recipes")


async def test_a_recipe_becomes_a_template_whose_packages_files_and_commands_are_there(workshop: Workshop) -> None:
    built = await workshop.build(TINY + WITH_FILES)

    said = workshop.shell(
        built, "cat /opt/deep/hello /opt/greeting; stat -c %a:%u /opt/deep/hello; command -v jq || echo no jq"
    )
    assert said.split("\n") == ["hi therehello", "755:0", "no jq", ""]
    assert dict(built.packages)["jq"].startswith("1.6")
    assert built.state == "ready"
    assert workshop.builder().find("tiny") == built
    assert workshop.builder().provenance(built.digest).python_version.startswith("3.11")


async def test_a_template_is_sealed(workshop: Workshop) -> None:
    built = await workshop.build(TINY + WITH_FILES)

    said = workshop.shell(
        built,
        "cat /etc/machine-id; ls /etc/ssh/ssh_host_* /etc/apt/apt.conf.d/99* 2>/dev/null || true; "
        "find /var/lib/apt/lists /var/cache/apt/archives /run /dev /tmp -mindepth 1 -not -name partial; "
        "grep nameserver /etc/resolv.conf || true; cat /etc/environment; "
        "find / -xdev \\( -type b -o -type c \\) -print; find / -xdev -nouser -print",
    )
    assert said.strip() == 'GREETING="hello"'
    assert "deb" in workshop.shell(built, "cat /etc/apt/sources.list.d/*")


async def test_a_second_build_repeats_nothing_and_takes_a_moment(workshop: Workshop) -> None:
    first = await workshop.build(TINY + WITH_FILES)
    started = time.monotonic()

    second = await workshop.build(TINY + WITH_FILES)

    assert second == first
    assert {state for _, state in workshop.seen} == {"cached"}
    assert time.monotonic() - started < 1


async def test_a_failing_command_is_named_with_its_output_and_finished_steps_are_kept(workshop: Workshop) -> None:
    with pytest.raises(TemplateBuildFailed) as caught:
        await workshop.build(f"{TINY}commands: ['echo the reason >&2; exit 3']\n")

    assert "at tiny/command 1: the reason" in str(caught.value)
    assert "log" in caught.value.advice
    await workshop.build(f"{TINY}commands: ['true']\n")
    assert dict(workshop.seen)["tiny/packages"] == "cached"
    assert not list((workshop.state / "templates" / "layers").glob("*.partial"))


async def test_a_step_beyond_its_limit_is_ended_and_the_limit_named(workshop: Workshop) -> None:
    await workshop.build(TINY)

    with pytest.raises(TemplateBuildFailed, match="step_s_max") as caught:
        await workshop.build(f"{TINY}commands: ['sleep 4711.5']\n", step_s_max=1.5)

    assert "templates.step_s_max" in caught.value.advice
    assert not running("sleep 4711.5")


async def test_a_package_that_does_not_exist_is_named(workshop: Workshop) -> None:
    with pytest.raises(TemplateBuildFailed, match="no-such-package-anywhere"):
        await workshop.build("name: tiny\npackages: [no-such-package-anywhere]\n")


async def test_a_step_sees_nothing_of_the_host_and_cannot_reach_out(workshop: Workshop) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    script = (
        "env > /opt/env; ls -d /proc/[0-9]* | wc -l > /opt/processes; ls / > /opt/root; ls -A /mnt > /opt/old;"
        "(mount -t tmpfs x /srv || mknod /opt/disk b 8 0 || unshare --mount true || chroot /proc/1/root true;"
        " hostname other) 2>/dev/null || echo refused > /opt/refused"
    )
    encoded = json.dumps(script)

    built = await workshop.build(f"{TINY}commands: [{encoded}]\n")

    environment = workshop.shell(built, "cat /opt/env")
    assert "hunter2" not in environment
    assert str(workshop.state) not in environment
    assert int(workshop.shell(built, "cat /opt/processes")) < 8
    assert workshop.shell(built, "cat /opt/old /opt/refused").strip() == "refused"
    assert Path("/proc/self/mountinfo").read_text() == before


async def test_removing_a_template_keeps_the_layers_that_another_shares(workshop: Workshop) -> None:
    kept = await workshop.build(TINY)
    gone = await workshop.build(f"{TINY}commands: ['head -c 3M /dev/urandom > /opt/noise']\n")
    builder = workshop.builder()
    with pytest.raises(TemplateInUse):
        await builder.remove(gone.digest, in_use=[gone.digest])

    freed = await builder.remove(gone.digest)

    assert 3 << 20 <= freed < 8 << 20
    assert gone.digest not in {each.digest for each in builder.installed()}
    assert kept.digest in {each.digest for each in builder.installed()}
    assert workshop.shell(kept, "echo '{}' | jq -c .").strip() == "{}"
    with pytest.raises(NotFound):
        await builder.remove(gone.digest)


async def test_a_cancelled_build_leaves_no_process_and_the_next_one_goes_on(workshop: Workshop) -> None:
    await workshop.build(TINY)
    task = asyncio.ensure_future(workshop.build(f"{TINY}commands: ['sleep 4712.5']\n"))
    await until_running("sleep 4712.5")

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not running("sleep 4712.5")
    await workshop.build(TINY)
    assert not list((workshop.state / "templates" / "layers").glob("*.partial"))


async def test_a_killed_builder_takes_its_step_along_and_the_next_build_cleans_up(workshop: Workshop) -> None:
    await workshop.build(TINY)
    (workshop.recipes / "tiny.yaml").write_text(f"{TINY}commands: ['sleep 4713.5']\n")
    builder = start_builder(workshop)
    await until_running("sleep 4713.5")

    builder.send_signal(signal.SIGKILL)
    builder.wait()

    await until_running("sleep 4713.5", wanted=False)
    assert list((workshop.state / "templates" / "layers").glob("*.partial"))
    await workshop.build(TINY)
    assert not list((workshop.state / "templates" / "layers").glob("*.partial"))
    assert mounts_below(workshop.state) == []


@pytest.mark.slow
async def test_after_a_first_build_the_next_one_needs_no_network(workshop: Workshop, tmp_path: Path) -> None:
    await workshop.build(TINY)
    elsewhere = tmp_path / "elsewhere"

    said = build_without_network(elsewhere, workshop.recipes)

    assert said.endswith("tiny ready\n")
    remove_tree(elsewhere)


@pytest.mark.slow
async def test_a_refresh_builds_anew_beside_what_exists_and_is_then_the_one_that_is_found(workshop: Workshop) -> None:
    before = await workshop.build(TINY)
    builder = workshop.builder()

    after = await builder.build(builder.recipe("tiny"), workshop.note, refresh=True)

    assert after.digest != before.digest
    assert builder.find("tiny") == after
    assert before.digest in {each.digest for each in builder.installed()}
    assert await builder.remove(after.digest) > 50 << 20
    assert builder.find("tiny") == before


def start_builder(workshop: Workshop) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", BUILD, str(workshop.state), str(workshop.recipes)])


def build_without_network(state: Path, recipes: Path) -> str:
    """What a builder prints in a network namespace that has no interface but a loopback that is down."""
    argv = ["unshare", "--net", sys.executable, "-c", BUILD, str(state), str(recipes)]
    return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True, timeout=300).stdout


def running(command: str) -> bool:
    return subprocess.run(["pgrep", "-f", f"^{command}"], capture_output=True).stdout != b""


async def until_running(command: str, *, wanted: bool = True) -> None:
    for _ in range(200):
        if running(command) is wanted:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{command}: running is not {wanted} after 20 s")


BUILD = """
import asyncio, sys
from pathlib import Path
from agentlab.base.clock import SystemClock
from agentlab.templates.build import TemplateBuilder
from agentlab.testing.rootfs import test_cache
cache = test_cache() / "packages"
builder = TemplateBuilder(Path(sys.argv[1]), cache, SystemClock(), recipe_dirs=[Path(sys.argv[2])])
built = asyncio.run(builder.build(builder.recipe("tiny"), print))
print(built.name, built.state)
"""
