"""What a backend must do that offers snapshots, forks or workspaces; its author adds these to `BackendContract`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from agentlab.backends.interface import Backend, Capability, Command, Gone, NotOurs, Refused, Snapshots, Workspaces
from agentlab.model.sandbox import Mark, Power, SandboxSpec, SnapshotOf
from agentlab.model.snapshot import WorkspaceDisk
from agentlab.testing.backend_contract import MakeSpec, power_of, result_of, running

DISK, MEMORY = "/root/kept", "/dev/shm/kept"  # a file on the disk, and one that ends with the power
IDENTITY = ("/etc/machine-id", "/proc/sys/kernel/hostname")


async def write(backend: Backend, mark: Mark, path: str, text: str) -> None:
    """Put a line into a file inside."""
    assert (await result_of(backend, mark, Command(argv=("sh", "-c", f"echo {text} > {path}"))))[0] == 0


async def read(backend: Backend, mark: Mark, path: str) -> str | None:
    """A file's line; None if it is absent."""
    status, content, _ = await result_of(backend, mark, Command(argv=("cat", path)))
    return content.decode().removesuffix("\n") if status == 0 else None


async def identity(backend: Backend, mark: Mark) -> list[str | None]:
    """What no two sandboxes may share."""
    return [await read(backend, mark, path) for path in IDENTITY]


async def again(backend: Backend, spec: SandboxSpec, name: str) -> None:
    """Stop it, restore a snapshot, and let it run, as the reconciler does."""
    assert backend.snapshots is not None
    await backend.stop(spec.mark, 1)
    await backend.snapshots.restore(spec.mark, name)
    await running(backend, spec)


async def names(snapshots: Snapshots, mark: Mark) -> list[str]:
    """Of what is kept, oldest first."""
    return [each.name for each in await snapshots.list(mark)]


class SnapshotContract:
    """Give the fixtures of `BackendContract`.  Specs must differ in `hostname` for forks to be told apart."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    async def snapshots(self, backend: Backend) -> Snapshots:
        """Of this backend."""
        if Capability.SNAPSHOT not in (await backend.probe()).capabilities:
            pytest.skip("this backend has no snapshots here")
        assert backend.snapshots is not None
        return backend.snapshots

    @pytest.fixture
    async def with_memory(self, backend: Backend, snapshots: Snapshots) -> Snapshots:
        """The same, where they can have memory."""
        if Capability.MEMORY_SNAPSHOT not in backend.capabilities:
            pytest.skip("this backend has no snapshots with memory here")
        return snapshots

    @pytest.fixture
    async def forking(self, backend: Backend, snapshots: Snapshots) -> Snapshots:
        """The same, where forks can begin as them."""
        if Capability.FORK not in backend.capabilities:
            pytest.skip("this backend cannot fork here")
        return snapshots

    async def test_snapshots_are_listed_oldest_first(
        self, backend: Backend, snapshots: Snapshots, make_spec: MakeSpec
    ) -> None:
        spec = make_spec()
        await backend.create(spec)
        before = await names(snapshots, spec.mark)

        await snapshots.take(spec.mark, "zero", memory=False)
        await running(backend, spec)
        await snapshots.take(spec.mark, "one", memory=False)

        assert before == []
        assert await names(snapshots, spec.mark) == ["zero", "one"]
        assert [each.memory for each in await snapshots.list(spec.mark)] == [False, False]

    async def test_restoring_gives_the_disk_of_that_moment_and_no_memory(
        self, backend: Backend, snapshots: Snapshots, make_spec: MakeSpec
    ) -> None:
        spec = make_spec()
        mark = await running(backend, spec)
        await write(backend, mark, DISK, "then")
        await write(backend, mark, MEMORY, "then")
        await snapshots.take(mark, "s", memory=False)
        await write(backend, mark, DISK, "later")

        await again(backend, spec, "s")

        assert await read(backend, mark, DISK) == "then"
        assert await read(backend, mark, MEMORY) is None

    async def test_taking_a_name_again_keeps_the_first(
        self, backend: Backend, snapshots: Snapshots, make_spec: MakeSpec
    ) -> None:
        spec = make_spec()
        mark = await running(backend, spec)
        await write(backend, mark, DISK, "first")
        await snapshots.take(mark, "s", memory=False)
        await write(backend, mark, DISK, "second")

        await snapshots.take(mark, "s", memory=False)
        await again(backend, spec, "s")

        assert await names(snapshots, mark) == ["s"]
        assert await read(backend, mark, DISK) == "first"

    async def test_restoring_goes_back_and_forth(
        self, backend: Backend, snapshots: Snapshots, make_spec: MakeSpec
    ) -> None:
        spec = make_spec()
        mark = await running(backend, spec)
        await write(backend, mark, DISK, "first")
        await snapshots.take(mark, "one", memory=False)
        await write(backend, mark, DISK, "second")
        await snapshots.take(mark, "two", memory=False)
        await backend.stop(mark, 1)

        await snapshots.restore(mark, "one")
        await snapshots.restore(mark, "one")
        await running(backend, spec)
        at_one = await read(backend, mark, DISK)
        await write(backend, mark, DISK, "third")
        await again(backend, spec, "two")

        assert (at_one, await read(backend, mark, DISK)) == ("first", "second")
        assert await names(snapshots, mark) == ["one", "two"]

    async def test_a_snapshot_with_memory_brings_back_what_ran(
        self, backend: Backend, with_memory: Snapshots, make_spec: MakeSpec
    ) -> None:
        spec = make_spec()
        mark = await running(backend, spec)
        await write(backend, mark, DISK, "then")
        await write(backend, mark, MEMORY, "then")
        await with_memory.take(mark, "s", memory=True)
        await write(backend, mark, DISK, "later")
        await write(backend, mark, MEMORY, "later")

        await again(backend, spec, "s")

        assert [each.memory for each in await with_memory.list(mark)] == [True]
        assert (await read(backend, mark, DISK), await read(backend, mark, MEMORY)) == ("then", "then")

    async def test_memory_comes_back_once(self, backend: Backend, with_memory: Snapshots, make_spec: MakeSpec) -> None:
        spec = make_spec()
        mark = await running(backend, spec)
        await write(backend, mark, MEMORY, "then")
        await with_memory.take(mark, "s", memory=True)
        await again(backend, spec, "s")
        await write(backend, mark, DISK, "later")

        await backend.stop(mark, 1)
        await running(backend, spec)

        assert (await read(backend, mark, DISK), await read(backend, mark, MEMORY)) == ("later", None)

    async def test_a_sandbox_goes_on_as_it_was_while_it_is_kept(
        self, backend: Backend, with_memory: Snapshots, make_spec: MakeSpec
    ) -> None:
        spec = make_spec()
        mark = await running(backend, spec)
        await write(backend, mark, MEMORY, "here")

        await with_memory.take(mark, "running", memory=True)
        after_running = await power_of(backend, mark.sandbox)
        await backend.pause(mark)
        await with_memory.take(mark, "paused", memory=True)
        after_paused = await power_of(backend, mark.sandbox)
        await backend.resume(mark)

        assert (after_running, after_paused) == (Power.RUNNING, Power.PAUSED)
        assert await read(backend, mark, MEMORY) == "here"

    async def test_a_stopped_sandbox_has_no_memory_to_keep(
        self, backend: Backend, with_memory: Snapshots, make_spec: MakeSpec
    ) -> None:
        spec = make_spec()
        await backend.create(spec)

        with pytest.raises(Gone):
            await with_memory.take(spec.mark, "s", memory=True)

        assert await names(with_memory, spec.mark) == []

    async def test_a_running_sandbox_is_not_restored(
        self, backend: Backend, snapshots: Snapshots, make_spec: MakeSpec
    ) -> None:
        mark = await running(backend, make_spec())
        await snapshots.take(mark, "s", memory=False)

        with pytest.raises(Refused):
            await snapshots.restore(mark, "s")

        assert await power_of(backend, mark.sandbox) is Power.RUNNING

    async def test_an_unknown_snapshot_is_gone(
        self, backend: Backend, snapshots: Snapshots, make_spec: MakeSpec
    ) -> None:
        spec = make_spec()
        await backend.create(spec)

        with pytest.raises(Gone):
            await snapshots.restore(spec.mark, "s")
        with pytest.raises(Gone):
            await snapshots.take(make_spec().mark, "s", memory=False)
        with pytest.raises(Gone):
            await snapshots.list(make_spec().mark)

    async def test_removing_twice_is_quiet_and_frees_the_name(
        self, backend: Backend, snapshots: Snapshots, make_spec: MakeSpec
    ) -> None:
        spec = make_spec()
        mark = await running(backend, spec)
        await write(backend, mark, DISK, "first")
        await snapshots.take(mark, "s", memory=False)
        await write(backend, mark, DISK, "second")

        await snapshots.remove(mark, "s")
        await snapshots.remove(mark, "s")
        left = await names(snapshots, mark)
        await snapshots.take(mark, "s", memory=False)
        await write(backend, mark, DISK, "third")
        await again(backend, spec, "s")

        assert left == []
        assert await read(backend, mark, DISK) == "second"

    async def test_removing_from_what_never_was_is_quiet(self, snapshots: Snapshots, make_spec: MakeSpec) -> None:
        await snapshots.remove(make_spec().mark, "s")

    async def test_the_middle_of_three_can_be_removed(
        self, backend: Backend, snapshots: Snapshots, make_spec: MakeSpec
    ) -> None:
        spec = make_spec()
        mark = await running(backend, spec)
        await snapshots.take(mark, "one", memory=False)
        await write(backend, mark, DISK, "second")
        await snapshots.take(mark, "two", memory=False)
        await write(backend, mark, DISK, "third")
        await snapshots.take(mark, "three", memory=False)

        await snapshots.remove(mark, "two")
        await again(backend, spec, "one")
        first = await read(backend, mark, DISK)
        await again(backend, spec, "three")

        assert (first, await read(backend, mark, DISK)) == (None, "third")

    async def test_a_foreign_mark_keeps_and_restores_nothing(
        self, backend: Backend, snapshots: Snapshots, make_spec: MakeSpec
    ) -> None:
        spec = make_spec()
        await backend.create(spec)
        await snapshots.take(spec.mark, "s", memory=False)
        foreign = replace(spec.mark, nonce="another")

        with pytest.raises(NotOurs):
            await snapshots.take(foreign, "t", memory=False)
        with pytest.raises(NotOurs):
            await snapshots.restore(foreign, "s")
        with pytest.raises(NotOurs):
            await snapshots.remove(foreign, "s")
        with pytest.raises(NotOurs):
            await snapshots.list(foreign)

        assert await names(snapshots, spec.mark) == ["s"]

    async def test_destruction_takes_the_snapshots_with_it(
        self, backend: Backend, snapshots: Snapshots, make_spec: MakeSpec
    ) -> None:
        spec = make_spec()
        mark = await running(backend, spec)
        await snapshots.take(mark, "s", memory=False)
        await backend.destroy(mark)

        await backend.create(spec)

        assert await names(snapshots, mark) == []

    async def test_a_fork_has_the_origins_files_and_an_identity_of_its_own(
        self, backend: Backend, forking: Snapshots, make_spec: MakeSpec
    ) -> None:
        origin = await running(backend, make_spec())
        await write(backend, origin, DISK, "then")
        await forking.take(origin, "s", memory=False)
        await write(backend, origin, DISK, "later")

        fork = await running(backend, replace(make_spec(), source=SnapshotOf(mark=origin, name="s")))
        await write(backend, fork, "/root/new", "own")

        assert await read(backend, fork, DISK) == "then"
        assert (await read(backend, origin, DISK), await read(backend, origin, "/root/new")) == ("later", None)
        shared = set(await identity(backend, origin)) & set(await identity(backend, fork))
        assert shared == set()

    async def test_forks_of_a_running_sandbox_go_on_where_it_was(
        self, backend: Backend, forking: Snapshots, with_memory: Snapshots, make_spec: MakeSpec
    ) -> None:
        origin = await running(backend, make_spec())
        await write(backend, origin, MEMORY, "then")
        await with_memory.take(origin, "s", memory=True)
        await write(backend, origin, MEMORY, "later")
        source = SnapshotOf(mark=origin, name="s")

        first = await running(backend, replace(make_spec(), source=source))
        await write(backend, first, MEMORY, "own")
        second = await running(backend, replace(make_spec(), source=source))

        assert await read(backend, second, MEMORY) == "then"
        assert await read(backend, first, MEMORY) == "own"
        assert await read(backend, origin, MEMORY) == "later"
        known = [*await identity(backend, origin), *await identity(backend, first), *await identity(backend, second)]
        assert len(set(known)) == len(known)

    async def test_a_forks_own_start_is_a_cold_one(
        self, backend: Backend, forking: Snapshots, with_memory: Snapshots, make_spec: MakeSpec
    ) -> None:
        origin = await running(backend, make_spec())
        await write(backend, origin, MEMORY, "then")
        await with_memory.take(origin, "s", memory=True)
        spec = replace(make_spec(), source=SnapshotOf(mark=origin, name="s"))
        fork = await running(backend, spec)
        await write(backend, fork, DISK, "own")

        await backend.stop(fork, 1)
        await running(backend, spec)

        assert (await read(backend, fork, DISK), await read(backend, fork, MEMORY)) == ("own", None)

    async def test_a_created_fork_outlives_snapshot_and_origin(
        self, backend: Backend, forking: Snapshots, make_spec: MakeSpec
    ) -> None:
        origin = await running(backend, make_spec())
        await write(backend, origin, DISK, "then")
        await forking.take(origin, "s", memory=Capability.MEMORY_SNAPSHOT in backend.capabilities)
        spec = replace(make_spec(), source=SnapshotOf(mark=origin, name="s"))
        await backend.create(spec)

        await forking.remove(origin, "s")
        await backend.destroy(origin)
        fork = await running(backend, spec)

        assert await read(backend, fork, DISK) == "then"
        assert [each.mark for each in await backend.list()] == [fork]

    async def test_a_fork_of_what_is_not_there_is_gone_and_leaves_nothing(
        self, backend: Backend, forking: Snapshots, make_spec: MakeSpec
    ) -> None:
        origin = make_spec()
        await backend.create(origin)

        with pytest.raises(Gone):
            await backend.create(replace(make_spec(), source=SnapshotOf(mark=origin.mark, name="s")))
        with pytest.raises(Gone):
            await backend.create(replace(make_spec(), source=SnapshotOf(mark=make_spec().mark, name="s")))

        assert [each.mark for each in await backend.list()] == [origin.mark]


class WorkspaceContract:
    """Give the fixtures of `BackendContract`, and `make_disk`, which makes empty workspace disks."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    async def workspaces(self, backend: Backend) -> Workspaces:
        """Of this backend."""
        if Capability.WORKSPACE not in (await backend.probe()).capabilities:
            pytest.skip("this backend has no workspaces here")
        assert backend.workspaces is not None
        return backend.workspaces

    @pytest.fixture
    def make_disk(self) -> Callable[[], WorkspaceDisk]:
        """Override it."""
        pytest.skip("no workspace disks can be made here")

    async def test_a_workspace_outlives_its_sandboxes(
        self,
        backend: Backend,
        workspaces: Workspaces,
        make_spec: MakeSpec,
        make_disk: Callable[[], WorkspaceDisk],
    ) -> None:
        first, second, disk = await running(backend, make_spec()), await running(backend, make_spec()), make_disk()

        await workspaces.attach(first, disk)
        await workspaces.attach(first, disk)
        plugged = await workspaces.list(first)
        await write(backend, first, f"{disk.mount}/file", "kept")
        await workspaces.detach(first, disk.serial)
        await workspaces.detach(first, disk.serial)
        await backend.destroy(first)
        await workspaces.attach(second, disk)

        assert list(plugged) == [disk]
        assert await read(backend, second, f"{disk.mount}/file") == "kept"

    async def test_a_workspace_has_one_user_at_a_time(
        self,
        backend: Backend,
        workspaces: Workspaces,
        make_spec: MakeSpec,
        make_disk: Callable[[], WorkspaceDisk],
    ) -> None:
        first, second, disk = await running(backend, make_spec()), await running(backend, make_spec()), make_disk()
        await workspaces.attach(first, disk)

        with pytest.raises(Refused):
            await workspaces.attach(second, disk)
        await backend.stop(first, 1)
        await workspaces.attach(second, disk)

        assert (list(await workspaces.list(first)), list(await workspaces.list(second))) == ([], [disk])

    async def test_workspaces_need_a_running_sandbox_of_ours(
        self,
        backend: Backend,
        workspaces: Workspaces,
        make_spec: MakeSpec,
        make_disk: Callable[[], WorkspaceDisk],
    ) -> None:
        stopped, mark = make_spec(), await running(backend, make_spec())
        await backend.create(stopped)

        with pytest.raises(Gone):
            await workspaces.attach(stopped.mark, make_disk())
        with pytest.raises(NotOurs):
            await workspaces.attach(replace(mark, nonce="another"), make_disk())
        with pytest.raises(NotOurs):
            await workspaces.detach(replace(mark, nonce="another"), "w")
