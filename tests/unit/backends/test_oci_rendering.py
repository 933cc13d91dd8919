"""What the container backend renders and reads, without a container."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from agentlab.backends.cgroup import detect
from agentlab.backends.interface import Gone, Refused, Unavailable
from agentlab.backends.oci import account
from agentlab.backends.oci.bundle import Place, configuration, resolv_conf
from agentlab.backends.oci.disk import clone, is_clean
from agentlab.backends.oci.runtime import failure
from agentlab.backends.oci.seccomp import profile
from agentlab.backends.oci.stage import choose
from agentlab.backends.oci.userns import UidRange, covers, pieces
from agentlab.model.ids import Digest, InstallationId, SandboxId
from agentlab.model.network import NetworkMode
from agentlab.model.resources import Resources
from agentlab.model.sandbox import Mark, SandboxSpec

PLACE = Place(
    stage="/mnt",
    uids=UidRange(first=0x1000_0000),
    cgroup="/agentlab-test2345/sb-22222222",
    limits=frozenset({"memory", "cpu", "pids"}),
    swap_limit=True,
    cgroup_version=2,
)
SPEC = SandboxSpec(
    mark=Mark(installation=InstallationId("test2345"), sandbox=SandboxId("sb-22222222"), nonce="n"),
    name="x",
    template="t",
    template_digest=Digest("0" * 64),
    slot=0,
    resources=Resources(memory_bytes=1 << 30, cpus=1.5, pids_max=99),
    network=NetworkMode.OFF,
    port=None,
    hostname="box",
    nameserver=None,
)


def rules_for(name: str, *, nested: bool) -> list[str]:
    return [rule["action"] for rule in profile(nested=nested)["syscalls"] if name in rule["names"]]


@pytest.mark.parametrize(
    "name", ["unshare", "mount", "setns", "pivot_root", "keyctl", "bpf", "userfaultfd", "kexec_load"]
)
def test_a_dangerous_call_is_refused_by_name(name: str) -> None:
    assert rules_for(name, nested=False) == ["SCMP_ACT_ERRNO"]


@pytest.mark.parametrize("name", ["io_uring_setup", "io_uring_enter", "a_call_of_the_future"])
def test_an_unlisted_call_does_not_exist(name: str) -> None:
    assert rules_for(name, nested=False) == []
    assert profile(nested=False)["defaultErrnoRet"] == 38


def test_nested_sandboxes_get_namespaces_and_mounts_and_nothing_else() -> None:
    assert rules_for("unshare", nested=True) == ["SCMP_ACT_ALLOW"]
    assert rules_for("clone3", nested=True) == ["SCMP_ACT_ALLOW"]
    assert rules_for("bpf", nested=True) == ["SCMP_ACT_ERRNO"]


def test_the_limits_are_those_of_the_resources() -> None:
    resources = configuration(SPEC, PLACE)["linux"]["resources"]

    assert resources["memory"] == {"limit": 1 << 30, "swap": 1 << 30}
    assert resources["cpu"] == {"quota": 150_000, "period": 100_000}
    assert resources["pids"] == {"limit": 99}


def test_without_control_groups_no_limit_is_asked_for() -> None:
    bare = replace(PLACE, cgroup=None, limits=frozenset(), swap_limit=False, cgroup_version=0)

    linux = configuration(SPEC, bare)["linux"]

    assert "cgroupsPath" not in linux
    assert list(linux["resources"]) == ["devices"]
    assert {"type": "cgroup"} not in linux["namespaces"]


def test_the_container_bears_the_mark_and_no_privileges() -> None:
    config = configuration(SPEC, PLACE)

    assert config["annotations"] == {
        "org.agentlab.installation": "test2345",
        "org.agentlab.sandbox": "sb-22222222",
        "org.agentlab.nonce": "n",
    }
    assert config["process"]["noNewPrivileges"] is True
    assert "CAP_SYS_ADMIN" not in config["process"]["capabilities"]["bounding"]
    assert "/proc/sys" in config["linux"]["readonlyPaths"]


def test_the_guests_resolver_is_ours_or_none() -> None:
    assert resolv_conf("10.77.0.1").splitlines()[0] == "nameserver 10.77.0.1"
    assert resolv_conf(None) == ""


def test_control_groups_of_version_2_are_found(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "system.slice").mkdir()
    (tmp_path / "system.slice" / "memory.swap.max").write_text("max\n")
    mountinfo = f"30 23 0:26 / {tmp_path} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"

    found = detect(mountinfo, root=tmp_path, writable=True)

    assert (found.version, found.swap, found.hybrid) == (2, True, None)
    assert sorted(found.controllers) == ["cpu", "freezer", "memory", "pids"]


def test_a_version_2_group_tells_of_freezing_and_of_killing(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")
    group = tmp_path / "agentlab-x" / "sb-y"
    group.mkdir(parents=True)
    (group / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    (group / "memory.events").write_text("low 0\noom 2\noom_kill 3\n")
    found = detect(f"30 23 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw\n", root=tmp_path, writable=True)

    assert found.frozen("/agentlab-x/sb-y") is True
    assert found.oom_kills("/agentlab-x/sb-y") == 3
    assert found.oom_kills("/agentlab-x/absent") == 0


def test_read_only_control_groups_count_as_none(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")

    found = detect(f"30 23 0:26 / {tmp_path} ro - cgroup2 cgroup2 ro\n", root=tmp_path, writable=False)

    assert (found.version, dict(found.controllers)) == (0, {})


def test_hybrid_control_groups_are_version_1_with_version_2_beside(tmp_path: Path) -> None:
    mountinfo = (
        f"32 31 0:29 / {tmp_path}/memory rw - cgroup cgroup rw,memory\n"
        f"33 31 0:30 / {tmp_path}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        f"34 31 0:31 / {tmp_path}/unified rw - cgroup2 cgroup2 rw\n"
    )

    found = detect(mountinfo, root=tmp_path, writable=True)

    assert (found.version, found.hybrid) == (1, tmp_path / "unified")
    assert dict(found.controllers) == {"memory": tmp_path / "memory", "cpu": tmp_path / "cpu,cpuacct"}


@pytest.fixture
def guest_root(tmp_path: Path) -> int:
    (tmp_path / "etc").mkdir()
    lines = (
        "root:x:0:0::/root:/bin/sh",
        "dev:x:1000:1001::/home/dev:/bin/sh",
        "evil:x:99999999:0::/:/bin/sh",
        "broken",
    )
    (tmp_path / "etc" / "passwd").write_text("\n".join(lines))
    (tmp_path / "etc" / "group").write_text("dev:x:1001:\ndocker:x:50:dev,other\nbad:x:abc:dev\n")
    return os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)


def test_a_user_is_found_with_groups_and_home(guest_root: int) -> None:
    found = account.find(guest_root, "dev")

    assert found == account.Account(name="dev", uid=1000, gid=1001, groups=(50,), home="/home/dev")
    assert account.find(guest_root, "1000") == found


@pytest.mark.parametrize("name", ["evil", "broken", "nobody", "70000", "-1", "9" * 6000])
def test_a_user_that_is_unknown_or_beyond_the_range_is_refused(guest_root: int, name: str) -> None:
    with pytest.raises(Refused):
        account.find(guest_root, name)


def test_links_in_the_guest_lead_to_the_guest(guest_root: int, tmp_path: Path) -> None:
    (tmp_path / "etc" / "passwd").unlink()
    (tmp_path / "etc" / "passwd").symlink_to("/etc/hostname")
    (tmp_path / "pipe").parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / "pipe")

    assert account.read_inside(guest_root, "etc/passwd", 1000) == b""
    assert account.read_inside(guest_root, "pipe", 1000) == b""


def test_a_sparse_image_is_copied_whole_and_stays_sparse(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.write(b"head")
        file.seek(100 << 20)
        file.write(b"middle")
        file.truncate(200 << 20)

    clone(source, tmp_path / "copy")

    copy = tmp_path / "copy"
    assert copy.stat().st_size == 200 << 20
    assert copy.stat().st_blocks * 512 < 1 << 20
    with copy.open("rb") as file:
        file.seek(100 << 20)
        assert file.read(6) == b"middle"


def test_an_image_without_a_file_system_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"\0" * 4096)

    with pytest.raises(ValueError, match="no file system"):
        is_clean(tmp_path / "image")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("container `sb-x` does not exist", Gone),
        ("the container `sb-x` is not running", Gone),
        ("write to cgroup.procs: Device or resource busy", Unavailable),
        ("mount `overlay`: Operation not permitted", Refused),
    ],
)
def test_a_runtimes_message_becomes_the_right_failure(text: str, kind: type[Exception]) -> None:
    assert type(failure(text, "crun create")) is kind


def test_roots_are_assembled_where_nothing_in_use_is_hidden() -> None:
    assert choose([Path("/var/lib/agentlab")]) == "/mnt"
    assert choose([Path("/mnt/disk/agentlab")]) != "/mnt"


def test_a_range_of_ids_must_exist_as_a_whole() -> None:
    assert covers(((0, 4294967295),), UidRange(first=0x1000_0000)) is True
    assert covers(((0, 65536),), UidRange(first=0x1000_0000)) is False


def test_ids_are_mapped_in_pieces_that_each_lie_in_one_range_of_ours() -> None:
    own = ((0, 1), (1, 65536))
    place = replace(PLACE, uids=UidRange(first=0), pieces=pieces(own, UidRange(first=0)))

    mapping = configuration(SPEC, place)["linux"]["uidMappings"]

    assert mapping == [
        {"containerID": 0, "hostID": 0, "size": 1},
        {"containerID": 1, "hostID": 1, "size": 65535},
    ]
