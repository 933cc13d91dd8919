"""VM images are built from real recipes and booted on real QEMU."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from agentlab.base.clock import SystemClock
from agentlab.errors import DiskFull, ImageUnusable, TemplateBuildFailed
from agentlab.model.ids import Digest
from agentlab.templates.assembly import GuestProgram
from agentlab.templates.build import TemplateBuilder
from agentlab.templates.image import ImageBuilder
from agentlab.templates.images import VmImage
from agentlab.testing.bare_vm import answers, bare_vm
from agentlab.testing.daemon_process import shared_templates
from agentlab.testing.images import image_builder, shared_image
from agentlab.testing.rootfs import test_cache

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="building templates needs root"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed"),
    pytest.mark.timeout(600),
]

SETTLED = "systemctl is-system-running --wait; systemctl --failed --no-legend"
SEED = {
    "meta-data": "instance-id: one\nlocal-hostname: brought\n",
    "user-data": "#cloud-config\nusers: [{name: visitor, uid: '1234', shell: /bin/bash}]\n",
}


@pytest.fixture(scope="module")
def direct() -> Mapping[str, str]:
    """What a machine says that was booted from the image of `base`."""
    return booted(
        shared_image(),
        {
            "settled": SETTLED,
            "marker": "cat /opt/agentlab/guest.json",
            "program": "sha256sum < /opt/agentlab/guest.pyz | cut -c1-64",
            "link": "readlink /opt/agentlab/guest.sock; test -S /opt/agentlab/guest.sock",
            "recipe": "id -u agent; jq --version; git --version | cut -c1-5",
            "keys": "ls -d /etc/ssh/ssh_host_* /var/lib/systemd/random-seed /var/log/journal 2>/dev/null || true",
            "lists": "find /var/lib/apt/lists /var/log -type f -size +0",
            "ipv6": "cat /proc/net/if_inet6; cat /proc/sys/net/ipv6/conf/lo/disable_ipv6",
            "cloud": "command -v cloud-init; ls /lib/systemd/system | grep cloud-",
            "timers": "systemctl list-timers --no-legend | wc -l",
            "nodes": "stat -c '%t:%T' /dev/net/tun /dev/fuse; modprobe overlay && echo overlay",
            "root": "findmnt --noheadings --output SOURCE,FSTYPE /",
            "address": "ip -4 -brief address show scope global",
        },
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "small", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_it_boots_to_a_settled_system_in_which_nothing_failed(direct: Mapping[str, str]) -> None:
    assert direct["settled"] == "running"
    assert direct["root"].split() == ["/dev/vda", "ext4"]


def test_the_guest_program_inside_is_the_one_that_its_marker_and_the_image_name(
    direct: Mapping[str, str],
) -> None:
    image = shared_image()

    assert json.loads(direct["marker"])["digest"] == direct["program"] == image.guest_digest
    assert direct["hello"] == image.guest_version
    assert direct["link"] == "/run/agentlab/guest.sock"


def test_what_the_recipe_says_is_there(direct: Mapping[str, str]) -> None:
    assert direct["recipe"].splitlines() == ["1000", "jq-1.6", "git v"]


def test_a_machine_holds_nothing_that_two_machines_must_not_share(direct: Mapping[str, str]) -> None:
    assert direct["keys"] == ""
    assert direct["lists"] == ""


def test_it_has_no_address_until_it_is_given_one(direct: Mapping[str, str]) -> None:
    assert direct["ipv6"] == "1"
    assert direct["address"] == ""


def test_nothing_runs_by_the_clock_and_nothing_asks_a_cloud(direct: Mapping[str, str]) -> None:
    assert direct["timers"] == "0"
    assert direct["cloud"].strip() == "[status 1]"


def test_devices_whose_use_loads_a_module_are_there(direct: Mapping[str, str]) -> None:
    assert direct["nodes"].splitlines() == ["a:c8", "a:e5", "overlay"]


def test_the_firmware_variant_boots_by_itself() -> None:
    image = shared_image(variant="firmware")

    said = booted(image, {"settled": SETTLED, "root": "findmnt --noheadings --output SOURCE /"})

    assert said["hello"] == image.guest_version
    assert said["settled"] == "running"
    assert said["root"] == "/dev/vda1"


def test_cloud_init_does_what_a_seed_disk_says(tmp_path: Path) -> None:
    for name, text in SEED.items():
        (tmp_path / name).write_text(text)
    seed = f"if=virtio,driver=vvfat,dir={tmp_path},label=cidata,fat-type=16,read-only=on"

    said = booted(
        shared_image("cloud"),
        {
            "status": "cloud-init status --wait --long | grep -E '^status|DataSource'",
            "user": "id -un 1234",
            "host": "hostname",
            "ssh": "systemctl is-active ssh",
        },
        [seed],
    )

    assert said["status"].splitlines()[0] == "status: done"
    assert "DataSourceNoCloud" in said["status"]
    assert (said["user"], said["host"], said["ssh"]) == ("visitor", "brought", "active")


async def test_a_changed_byte_on_the_disk_is_found(tmp_path: Path) -> None:
    builder, image = copied(tmp_path)
    await builder.verify(image)
    with image.disk.open("r+b") as file:
        file.seek(image.disk.stat().st_size // 2)
        file.write(b"something else")

    with pytest.raises(ImageUnusable, match="its disk has changed since it was built"):
        await builder.verify(image)


async def test_damaged_tables_of_the_disk_are_found(tmp_path: Path) -> None:
    builder, image = copied(tmp_path)
    with image.disk.open("r+b") as file:
        file.write(b"not a qcow2 file")

    with pytest.raises(ImageUnusable, match="qemu-img ended with status"):
        await builder.verify(image)


async def test_a_new_guest_program_makes_a_new_image_and_pruning_takes_the_old_one(tmp_path: Path) -> None:
    state, template = linked(tmp_path)
    first, second = (GuestProgram(content=content, version="9") for content in (b"first", b"second"))
    old = await builder_on(state, first).build(template)
    builder = builder_on(state, second)
    assert builder.find(template) is None

    steps: list[tuple[str, str]] = []
    new = await builder.build(template, lambda name, step_state, _: steps.append((name, step_state)))
    await builder.prune()

    assert steps[0] == ("vm/packages", "cached")
    assert (old.disk.exists(), new.disk.exists()) == (False, True)
    assert new.guest_digest == second.digest


async def test_a_failed_build_leaves_nothing_behind_and_names_its_cause(tmp_path: Path) -> None:
    state, template = linked(tmp_path)
    (state / "templates" / "images").write_text("in the way")

    with pytest.raises(TemplateBuildFailed, match=r"vm/image: .*File exists"):
        await builder_on(state, GuestProgram(content=b"third", version="9")).build(template)

    assert list((state / "templates" / "layers").glob("*.partial")) == []


async def test_a_full_disk_is_an_error_that_says_how_much_is_needed(tmp_path: Path, small_disk: Path) -> None:
    state, template = linked(tmp_path)
    shutil.copytree(state / "templates" / "builds", small_disk / "templates" / "builds")
    (small_disk / "templates" / "layers").mkdir()

    with pytest.raises(DiskFull, match=r"2\.0 GiB are needed"):
        await builder_on(small_disk, GuestProgram(content=b"fourth", version="9")).build(template)


def booted(image: VmImage, questions: Mapping[str, str], drives: Sequence[str] = ()) -> dict[str, str]:
    """Boot once and ask; `hello` is the version that the guest program said."""

    async def ask_all(folder: Path) -> dict[str, str]:
        async with bare_vm(image, folder, drives=drives) as control:
            return {"hello": control.hello.version, **await answers(control, questions)}

    with tempfile.TemporaryDirectory(prefix="vm", dir="/tmp") as folder:
        return asyncio.run(ask_all(Path(folder)))


def builder_on(state: Path, guest: GuestProgram | None = None) -> ImageBuilder:
    clock = SystemClock()
    return ImageBuilder(TemplateBuilder(state, test_cache() / "packages", clock), state, clock, guest=guest)


def linked(tmp_path: Path) -> tuple[Path, Digest]:
    """A state directory with the shared templates and no images, and the build of `base`."""
    _, template = image_builder()
    templates = tmp_path / "state" / "templates"
    templates.mkdir(parents=True)
    for name in ("builds", "layers"):
        (templates / name).symlink_to(shared_templates() / "templates" / name)
    return tmp_path / "state", template


def copied(tmp_path: Path) -> tuple[ImageBuilder, VmImage]:
    """A copy of the shared image that may be harmed."""
    image = shared_image()
    state, template = linked(tmp_path)
    shutil.copytree(image.disk.parent, state / "templates" / "images" / image.disk.parent.name)
    builder = builder_on(state)
    found = builder.find(template)
    assert found is not None
    found.disk.chmod(0o644)
    return builder, found
