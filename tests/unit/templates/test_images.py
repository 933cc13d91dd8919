"""VM images on disk: complete or absent, and what is wrong with one is said."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from agentlab.base.clock import SystemClock
from agentlab.errors import ImageUnusable
from agentlab.model.ids import Digest
from agentlab.templates.assembly import GuestProgram
from agentlab.templates.build import TemplateBuilder
from agentlab.templates.image import ImageBuilder, image_key
from agentlab.templates.images import DISK, INITRD, KERNEL, MARK, ImageRecord, Images, parse_record
from agentlab.templates.layers import Layers
from agentlab.templates.provenance import BuildRecord
from agentlab.templates.vm_layer import own_layers

pytestmark = pytest.mark.anyio

TEMPLATE = Digest("ab" * 32)
GUEST = GuestProgram(content=b"guest", version="1.2", protocol=1)
OTHER_GUEST = GuestProgram(content=b"another guest", version="1.2", protocol=1)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path / "templates" / "images")


def a_record(**changes: object) -> ImageRecord:
    record = ImageRecord(
        mark=MARK,
        key=image_key(TEMPLATE, platform.machine(), "direct", GUEST),
        digest="cd" * 32,
        template=TEMPLATE,
        variant="direct",
        layers=("ef" * 32,),
        kernel_version="6.1",
        command_line="root=/dev/vda",
        guest_version=GUEST.version,
        guest_digest=GUEST.digest,
        guest_protocol=1,
        disk_bytes=1 << 20,
        sizes={DISK: 4, KERNEL: 6, INITRD: 6},
        disk_sha256="00" * 32,
        built_at=1000.0,
        build_s=1.0,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


async def put(images: Images, record: ImageRecord) -> Path:
    scratch = images.begin(record.key)
    (scratch / DISK).write_bytes(b"disk")
    (scratch / KERNEL).write_bytes(b"kernel")
    (scratch / INITRD).write_bytes(b"initrd")
    await images.commit(scratch, record)
    return images.path(record)


def builder(tmp_path: Path, guest: GuestProgram = GUEST) -> ImageBuilder:
    clock = SystemClock()
    return ImageBuilder(TemplateBuilder(tmp_path, tmp_path / "cache", clock), tmp_path, clock, guest=guest)


async def test_what_was_committed_is_found_and_read_only(tmp_path: Path, images: Images) -> None:
    folder = await put(images, a_record())

    found = builder(tmp_path).find(TEMPLATE)

    assert found is not None
    assert (found.digest, found.disk, found.disk_bytes) == ("cd" * 32, folder / DISK, 1 << 20)
    assert (found.guest_version, found.guest_digest) == ("1.2", GUEST.digest)
    assert found.disk.stat().st_mode & 0o777 == 0o444


async def test_an_image_with_another_guest_program_is_passed_over(tmp_path: Path, images: Images) -> None:
    await put(images, a_record())

    assert builder(tmp_path, OTHER_GUEST).find(TEMPLATE) is None


async def test_an_image_of_the_other_variant_is_passed_over(tmp_path: Path, images: Images) -> None:
    await put(images, a_record())

    assert builder(tmp_path).find(TEMPLATE, "firmware") is None


async def test_a_truncated_disk_is_named(tmp_path: Path, images: Images) -> None:
    folder = await put(images, a_record())
    (folder / DISK).chmod(0o644)
    (folder / DISK).write_bytes(b"di")

    with pytest.raises(ImageUnusable, match=r"disk\.qcow2 has 2 bytes and was built with 4"):
        images.image(a_record())
    assert builder(tmp_path).find(TEMPLATE) is None


async def test_a_missing_kernel_is_named(images: Images) -> None:
    folder = await put(images, a_record())
    (folder / KERNEL).unlink()

    with pytest.raises(ImageUnusable, match="vmlinuz: No such file"):
        images.image(a_record())


async def test_an_image_without_our_mark_is_no_image(images: Images) -> None:
    folder = await put(images, a_record())
    (folder / "image.json").unlink()
    (folder / "image.json").write_text(json.dumps({**asdict(a_record()), "mark": "somebody's"}))

    assert images.all() == []


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b'{"mark": "agentlab-vm-image-1"}', b"\xff"])
def test_a_record_that_is_damaged_is_refused_with_an_expected_exception(content: bytes) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        parse_record(content)


async def test_a_record_that_was_moved_to_another_folder_does_not_count(images: Images) -> None:
    folder = await put(images, a_record())
    folder.rename(folder.with_name("elsewhere"))

    assert images.all() == []


async def test_what_an_interrupted_build_left_is_removed(images: Images) -> None:
    scratch = images.begin("12" * 32)

    images.remove_partial()

    assert not scratch.exists()


async def test_removing_a_template_takes_its_images_and_their_layers(tmp_path: Path, images: Images) -> None:
    folder = await put(images, a_record())
    layers = Layers(tmp_path / "templates" / "layers")
    below, *_, own = (TEMPLATE, *reversed(own_layers(TEMPLATE, "x86_64")))
    await _put_layer(layers, below)
    await _put_layer(layers, own)
    templates = TemplateBuilder(tmp_path, tmp_path / "cache", SystemClock())
    templates._builds.write(_build_record())

    await templates.remove(TEMPLATE)

    assert not folder.exists()
    assert list(layers.folder.iterdir()) == []


async def test_pruning_keeps_what_is_current_or_in_use(tmp_path: Path, images: Images) -> None:
    layers = Layers(tmp_path / "templates" / "layers")
    await _put_layer(layers, TEMPLATE)
    TemplateBuilder(tmp_path, tmp_path / "cache", SystemClock())._builds.write(_build_record())
    current = await put(images, a_record())
    used = await put(images, a_record(digest="11" * 32, key="22" * 32))
    outdated = await put(images, a_record(digest="33" * 32, key="44" * 32))

    await builder(tmp_path).prune({Digest("11" * 32)})

    assert (current.exists(), used.exists(), outdated.exists()) == (True, True, False)


def test_the_key_tells_guest_programs_variants_and_templates_apart() -> None:
    keys = {
        image_key(TEMPLATE, "x86_64", "direct", GUEST),
        image_key(TEMPLATE, "x86_64", "firmware", GUEST),
        image_key(TEMPLATE, "x86_64", "direct", OTHER_GUEST),
        image_key(Digest("99" * 32), "x86_64", "direct", GUEST),
        image_key(TEMPLATE, "aarch64", "direct", GUEST),
    }

    assert len(keys) == 5


def test_the_marker_names_version_digest_and_protocol() -> None:
    assert json.loads(GUEST.marker()) == {
        "version": "1.2",
        "digest": "84983c60f7daadc1cb8698621f802c0d9f9a3c3c295c810748fb048115c186ec",
        "protocol": 1,
    }


async def _put_layer(layers: Layers, digest: Digest) -> None:
    scratch = await layers.begin(digest)
    await layers.commit(digest, "step", scratch, 0.0, 0.0)


def _build_record() -> BuildRecord:
    return BuildRecord(
        name="tiny",
        digest=TEMPLATE,
        recipe_digest=TEMPLATE,
        layers=(TEMPLATE,),
        steps=("tiny/base",),
        bytes_count=0,
        built_at=0.0,
        build_s=0.0,
        builder_version=1,
        machine="x86_64",
        python_version="3.11",
        packages=(),
    )
