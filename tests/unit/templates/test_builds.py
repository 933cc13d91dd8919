"""What is kept of finished builds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agentlab.errors import NotFound
from agentlab.model.ids import Digest
from agentlab.templates.builds import Builds
from agentlab.templates.isolation import tail
from agentlab.templates.layers import Layers
from agentlab.templates.provenance import BuildRecord, packages_of, python_version

pytestmark = pytest.mark.anyio

DIGEST = Digest("a" * 64)
RECORD = BuildRecord(
    name="base",
    digest=DIGEST,
    recipe_digest="b" * 64,
    layers=("c" * 64, DIGEST),
    steps=("base/base", "base/seal"),
    bytes_count=5,
    built_at=7.0,
    build_s=2.5,
    builder_version=1,
    machine="x86_64",
    python_version="3.11.2",
    packages=(("git", "1:2.39"), ("pip:requests", "2.31")),
)


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    builds = Builds(tmp_path / "builds")

    builds.write(RECORD)

    assert builds.get(DIGEST) == RECORD
    assert builds.all() == [RECORD]


def test_a_damaged_record_is_passed_over_and_the_others_stay(tmp_path: Path) -> None:
    builds = Builds(tmp_path)
    builds.write(RECORD)
    (tmp_path / f"{'d' * 64}.json").write_text('{"name": ')
    (tmp_path / f"{'e' * 64}.json").write_text('{"name": "x"}')

    assert builds.all() == [RECORD]


def test_a_forgotten_record_is_not_found_and_forgetting_twice_is_quiet(tmp_path: Path) -> None:
    builds = Builds(tmp_path)
    builds.write(replace(RECORD, name="other"))

    builds.forget(DIGEST)
    builds.forget(DIGEST)

    with pytest.raises(NotFound):
        builds.get(DIGEST)


def test_a_digest_that_is_a_path_is_not_followed(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Builds(tmp_path).get(Digest("../../etc/passwd"))


def test_packages_are_read_from_the_topmost_database_and_from_every_layer(tmp_path: Path) -> None:
    top, bottom = tmp_path / "top", tmp_path / "bottom"
    for layer, version in ((top, "2"), (bottom, "1")):
        (layer / "var/lib/dpkg").mkdir(parents=True)
        (layer / "var/lib/dpkg/status").write_text(
            f"Package: python3\nStatus: install ok installed\nVersion: 3.11.{version}-1+b1\n\n"
            "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n"
        )
    (bottom / "usr/local/lib/python3.11/dist-packages/Some_Thing-1.5.dist-info").mkdir(parents=True)
    (top / "usr/local/lib/node_modules/@scope/tool").mkdir(parents=True)
    (top / "usr/local/lib/node_modules/@scope/tool/package.json").write_text(
        '{"name": "@scope/tool", "version": "4.0"}'
    )
    (top / "usr/local/lib/node_modules/@scope/odd").mkdir(parents=True)
    (top / "usr/local/lib/node_modules/@scope/odd/package.json").write_text("[]")

    found = packages_of([top, bottom])

    assert found == (("npm:@scope/tool", "4.0"), ("pip:some-thing", "1.5"), ("python3", "3.11.2-1+b1"))
    assert python_version(found) == "3.11.2"


async def test_a_layer_is_there_completely_or_not_at_all(tmp_path: Path) -> None:
    layers = Layers(tmp_path / "layers")
    scratch = await layers.begin(DIGEST)
    (scratch / "fs" / "file").write_text("x" * 5000)
    assert not layers.has(DIGEST)

    await layers.commit(DIGEST, "base/base", scratch, 1.0, 2.0)

    assert layers.has(DIGEST)
    assert (layers.root(DIGEST) / "file").stat().st_size == 5000
    assert layers.record(DIGEST).bytes_count >= 5000
    assert sorted(each.name for each in layers.root(DIGEST).parent.iterdir()) == ["fs", "layer.json"]


async def test_beginning_again_removes_what_an_earlier_try_left(tmp_path: Path) -> None:
    layers = Layers(tmp_path / "layers")
    scratch = await layers.begin(DIGEST)
    (scratch / "fs" / "half").write_text("x")

    again = await layers.begin(DIGEST)

    assert again == scratch
    assert list((again / "fs").iterdir()) == []
    assert await layers.remove_partial() == [scratch.name]


def test_the_tail_of_a_log_is_one_printable_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"first\n" * 2000 + b"\x1b[31mE: broken\x1b[0m \xff\n\n10%\r20%\n")

    assert tail(log, lines=3) == "E: broken � / 10% / 20%"
    assert tail(tmp_path / "none") == ""
