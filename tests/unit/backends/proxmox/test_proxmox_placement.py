"""Where sandboxes go."""

from __future__ import annotations

import dataclasses

import pytest

from agentlab.backends.interface import Refused, Unavailable
from agentlab.backends.proxmox.observe import ClusterView, NodeView, StorageView, VmStatus, VmView
from agentlab.backends.proxmox.placement import Booked, Copy, Policy, Strategy, Wanted, place

GIB = 1 << 30
WANTED = Wanted(memory_bytes=4 * GIB, cpus=2, disk_bytes=20 * GIB)
SPREAD, PACK = Policy(), Policy(strategy=Strategy.PACK)


def node(name: str, *, used: int = 4, size: int = 32, cpus: int = 8, online: bool = True) -> NodeView:
    return NodeView(name, online, False, size * GIB, used * GIB, cpus, 0.1)


def storage(
    node: str, name: str = "local-zfs", *, free: int = 500, shared: bool = False, **more: object
) -> StorageView:
    made = StorageView(name, node, True, shared, frozenset({"images"}), "zfspool", 1000 * GIB, (1000 - free) * GIB)
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


def vm(vmid: int, node: str, *, memory: int = 4, status: VmStatus = VmStatus.RUNNING) -> VmView:
    return VmView(vmid, node, status, f"vm-{vmid}", "", (), "", False, memory * GIB, 2, 0, 1)


def view(nodes: list[NodeView], storages: list[StorageView], vms: list[VmView] | None = None) -> ClusterView:
    return ClusterView(
        at=1.0,
        nodes={each.name: each for each in nodes},
        storages={(each.node, each.name): each for each in storages},
        vms={each.vmid: each for each in vms or []},
    )


def copies(*nodes: str, storage: str = "local-zfs") -> list[Copy]:
    return [Copy(vmid=9000 + index, node=each, storage=storage) for index, each in enumerate(nodes)]


TWO = view([node("a", used=10), node("b", used=4)], [storage("a"), storage("b")])


def test_spreading_takes_the_node_with_the_most_room_and_says_so() -> None:
    placement = place(WANTED, copies("a", "b"), TWO)

    assert (placement.node, placement.copy.vmid, placement.storage, placement.full) == ("b", 9001, "local-zfs", False)
    assert placement.why == "b: a linked clone of 9001 on local-zfs; of 2 nodes the one with the most room (spread)"


def test_packing_takes_the_fullest_that_can_take_it() -> None:
    assert place(WANTED, copies("a", "b"), TWO, policy=PACK).node == "a"


def test_among_equals_it_is_always_the_same_one() -> None:
    equal = view([node("b"), node("a")], [storage("a"), storage("b")])

    assert {place(WANTED, copies("b", "a"), equal).node for _ in range(5)} == {"a"}


def test_a_node_that_cannot_is_passed_over_with_its_reason() -> None:
    nodes = [node("away", online=False), node("full", used=30), node("good", used=20), node("kept")]
    nodes.append(dataclasses.replace(node("ha"), maintenance=True))
    world = view(nodes, [storage(each.name) for each in nodes])

    placement = place(
        WANTED, copies("away", "full", "good", "kept", "ha"), world, policy=Policy(maintenance=frozenset({"kept"}))
    )

    assert placement.node == "good"
    assert placement.rejected == {
        "away": "offline",
        "full": "memory: 0 B left of 32.0 GiB",
        "ha": "in maintenance",
        "kept": "in maintenance",
    }
    assert "; not away (offline), full (memory:" in placement.why


def test_memory_that_running_vms_were_promised_is_not_given_again() -> None:
    promised = view(
        [node("a", used=4), node("b", used=20)],
        [storage("a"), storage("b")],
        [vm(each, "a", memory=8) for each in range(100, 103)] + [vm(200, "a", memory=64, status=VmStatus.STOPPED)],
    )

    assert place(WANTED, copies("a", "b"), promised).node == "b"


def test_what_was_placed_a_moment_ago_is_counted_until_it_is_seen_to_run() -> None:
    booked = [
        Booked(vmid=300 + each, node="b", storage="local-zfs", memory_bytes=4 * GIB, cpus=2, disk_bytes=GIB)
        for each in range(3)
    ]
    running = view(list(TWO.nodes.values()), list(TWO.storages.values()), [vm(300 + each, "b") for each in range(3)])

    assert place(WANTED, copies("a", "b"), TWO, booked).node == "a"
    assert place(WANTED, copies("a", "b"), running, booked).node == "a"
    assert place(WANTED, copies("a", "b"), TWO).node == "b"


def test_a_hundred_in_a_row_are_spread_evenly_by_the_bookings_alone() -> None:
    names = ["a", "b", "c", "d"]
    world = view([node(each, size=512, cpus=64) for each in names], [storage(each, free=900) for each in names])
    booked: list[Booked] = []
    for each in range(100):
        found = place(WANTED, copies(*names), world, booked)
        booked.append(
            Booked(
                vmid=300 + each, node=found.node, storage=found.storage, memory_bytes=4 * GIB, cpus=2, disk_bytes=GIB
            )
        )

    assert {name: sum(each.node == name for each in booked) for name in names} == dict.fromkeys(names, 25)


def test_a_template_on_a_shared_storage_can_be_cloned_by_every_node_that_sees_it() -> None:
    world = view(
        [node("a", used=20), node("b"), node("c", used=1)],
        [storage("a", "nfs", shared=True), storage("b", "nfs", shared=True)],
    )

    placement = place(WANTED, copies("a", storage="nfs"), world)

    assert (placement.node, placement.copy.node) == ("b", "a")
    assert placement.rejected == {"c": "the template is not on this node, nor on a storage that it shares"}


def test_where_no_linked_clone_is_possible_a_full_one_is_made_on_the_storage_that_is_preferred() -> None:
    world = view(
        [node("a")], [storage("a", "lvm", type="lvm"), storage("a", "big", free=900), storage("a", "fast", free=100)]
    )

    free = place(WANTED, copies("a", storage="lvm"), world)
    chosen = place(WANTED, copies("a", storage="lvm"), world, policy=Policy(storages=("fast", "big")))

    assert (free.storage, free.full) == ("big", True)
    assert (chosen.storage, chosen.full) == ("fast", True)


def test_a_linked_clone_is_preferred_to_a_full_one_on_an_emptier_node() -> None:
    world = view(
        [node("a", used=20), node("b", used=1)], [storage("a"), storage("b", "lvm", type="lvm"), storage("b", "dir")]
    )
    both = [Copy(vmid=9000, node="a", storage="local-zfs"), Copy(vmid=9001, node="b", storage="lvm")]

    assert place(WANTED, both, world).node == "a"


@pytest.mark.parametrize(
    ("world", "reason"),
    [
        (view([node("a", used=31)], [storage("a")]), r"memory: 0 B left"),
        (view([node("a", cpus=1)], [storage("a")], [vm(100, "a")]), r"processors: 2 left of 1 × 4"),
        (view([node("a")], [storage("a", free=6)]), r"storage local-zfs: 2\.0 GiB left"),
        (view([node("a")], [storage("a", available=False)]), "not available"),
        (view([node("a", online=False)], [storage("a")]), "offline"),
        (view([node("a", size=0, used=0)], [storage("a")]), "Sys.Audit on /nodes is missing"),
    ],
)
def test_what_may_pass_is_unavailable_now(world: ClusterView, reason: str) -> None:
    wanted = dataclasses.replace(WANTED, cpus=3)
    with pytest.raises(Unavailable, match=rf"no node can take the sandbox: a \(.*{reason}"):
        place(wanted, copies("a"), world)


@pytest.mark.parametrize(
    ("wanted", "where", "policy", "reason"),
    [
        (dataclasses.replace(WANTED, memory_bytes=64 * GIB), copies("a"), SPREAD, "memory"),
        (dataclasses.replace(WANTED, cpus=100), copies("a"), SPREAD, "processors"),
        (WANTED, copies("z"), SPREAD, "the template is not on this node"),
        (WANTED, copies("a"), Policy(nodes=frozenset({"z"})), "not among the configured nodes"),
        (WANTED, [], SPREAD, "on no node of the cluster"),
    ],
)
def test_what_will_never_fit_is_refused(wanted: Wanted, where: list[Copy], policy: Policy, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        place(wanted, where, view([node("a")], [storage("a")]), policy=policy)


def test_a_token_that_sees_nothing_is_told_so() -> None:
    with pytest.raises(Refused, match="lacks its rights"):
        place(WANTED, copies("a"), view([], []))
