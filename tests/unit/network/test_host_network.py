"""The agent bridge of a plain host: what it renders to, what stands in its way, and which steps make or undo it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from agentlab.network.addresses import Taken
from agentlab.network.host_network import files, look, obstacles, plan, rules
from agentlab.network.host_network.files import File
from agentlab.network.host_network.obstacles import Survey
from agentlab.network.host_network.plan import Enable, Remove, Run, Set, Write
from agentlab.network.host_network.spec import MARK, Spec, objections, routing
from agentlab.network.host_network.state import Link, Observed, Record, parse_record

GOLDEN = Path(__file__).parents[2] / "golden" / "host_network"
SPEC = Spec(
    bridge="agbr0",
    subnet=IPv4Network("10.80.0.0/24"),
    uplink="vmbr0",
    guest=IPv4Address("10.80.0.1"),
    guest_port=8811,
    on_link=(IPv4Network("11.0.0.0/24"),),
)
BESIDE = replace(SPEC, guest=IPv4Address("10.80.0.2"), nameserver=IPv4Address("192.168.1.1"), by_bridge=False)
UPLINK = "ipv4/conf/vmbr0/forwarding"
NOWHERE = Observed(files={}, enabled=False, directories=frozenset({Path("/"), Path("/etc")}), record=None)
BEFORE = replace(NOWHERE, settings={UPLINK: "0"})
LINK = Link(kind="bridge", alias=MARK, mac=SPEC.mac, up=True, addresses=(SPEC.address,), ports=())
THEIRS = replace(LINK, alias="", mac="7e:00:00:00:00:01")
SURVEY = Survey(interfaces="source /etc/network/interfaces.d/*\n", links=frozenset({"lo", "vmbr0"}))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rules.nft", rules.render(SPEC)),
        ("rules_beside.nft", rules.render(BESIDE)),
        *((path.name, file.content) for path, file in files.render(SPEC).items() if path != files.RULES),
    ],
)
def test_what_is_rendered_is_the_golden_text(name: str, text: str) -> None:
    if os.environ.get("GOLDEN_WRITE"):
        (GOLDEN / name).write_text(text)

    assert text == (GOLDEN / name).read_text()


def test_an_interface_with_a_dot_in_its_name_keeps_it_in_its_settings() -> None:
    content = files.render(replace(SPEC, uplink="eno1.100"))[files.SYSCTL].content

    assert "net/ipv4/conf/eno1.100/forwarding = 1" in content


def test_nothing_is_to_be_done_once_everything_stands() -> None:
    assert plan.set_up(SPEC, _standing()) == []


def test_the_record_comes_first_and_the_bridge_goes_up_last() -> None:
    steps = plan.set_up(SPEC, BEFORE)

    assert isinstance(steps[0], Write)
    assert steps[0].path == files.RECORD
    assert steps[-1] == Run(argv=("ip", "link", "set", "dev", "agbr0", "up"))
    assert _place(steps, "nft -f -") < _place(steps, "ip link add")


def test_the_value_from_before_is_written_down_only_the_first_time() -> None:
    first = plan.set_up(SPEC, BEFORE)
    record = parse_record(_written(first)[files.RECORD])
    ours = replace(BEFORE, record=record, settings={UPLINK: "1"})

    again = _written(plan.set_up(SPEC, ours))

    assert dict(record.before) == {UPLINK: "0"}
    assert parse_record(again[files.RECORD]) == record


def test_only_what_differs_is_done_again() -> None:
    standing = _standing()
    worn = replace(
        standing,
        rules=False,
        link=replace(LINK, up=False, addresses=("10.9.9.9/24",)),
        settings={**standing.settings, UPLINK: "0"},
        routing=frozenset(routing(SPEC)[:2]),
    )

    assert [str(each) for each in plan.set_up(SPEC, worn)] == [
        "run nft -f - with the rules",
        "set net/ipv4/conf/vmbr0/forwarding = 1",
        "run ip addr del 10.9.9.9/24 dev agbr0",
        "run ip addr add 10.80.0.1/24 dev agbr0",
        "run ip rule add pref 1272 iif agbr0 unreachable",
        "run ip link set dev agbr0 up",
    ]


def test_below_a_folder_only_files_are_written() -> None:
    steps = plan.set_up(SPEC, replace(NOWHERE, live=False))

    assert {type(each) for each in steps} == {Write, Enable}


def test_systemd_is_told_where_it_runs() -> None:
    told = [str(each) for each in plan.set_up(SPEC, replace(BEFORE, systemd=True)) if "systemctl" in str(each)]

    assert told == ["run systemctl daemon-reload", f"run systemctl start {files.UNIT_NAME}"]


def test_undo_takes_the_bridge_away_before_its_rules_and_the_record_after_everything() -> None:
    steps = plan.undo(SPEC, _standing())

    assert _place(steps, "ip link del agbr0") < _place(steps, "nft -f -") < _place(steps, "remove")
    assert steps.index(Remove(path=files.RECORD)) > max(
        steps.index(Remove(path=path)) for path in (*files.FILES, files.ENABLED)
    )
    assert Set(name=UPLINK, value="0") in steps


def test_undo_leaves_a_setting_that_others_need_by_now() -> None:
    steps = plan.undo(SPEC, replace(_standing(), forwards_all=True))

    assert [each for each in steps if isinstance(each, Set)] == []


def test_undo_touches_neither_a_bridge_nor_a_file_of_somebody_else() -> None:
    theirs = replace(NOWHERE, link=THEIRS, files={files.INTERFACES: File(content="iface agbr0 inet dhcp\n")})

    assert plan.undo(SPEC, theirs) == []


def test_a_record_reads_back_as_it_was_written() -> None:
    record = Record(bridge="agbr0", subnet=SPEC.subnet, uplink="vmbr0", before={UPLINK: "0"}, directories=("/etc/x",))

    assert parse_record(record.text()) == record


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "bridge": "x"}'])
def test_a_record_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_record(text)


@pytest.mark.parametrize(
    ("spec", "cause"),
    [
        (replace(SPEC, bridge="ag br0"), "'ag br0' is not the name of a bridge"),
        (replace(SPEC, bridge="agbr0123456"), "'agbr0123456' is not the name of a bridge"),
        (replace(SPEC, uplink='x" drop'), "'x\" drop' cannot be the way to the internet"),
        (replace(SPEC, uplink="tailscale0"), "'tailscale0' cannot be the way to the internet"),
        (replace(SPEC, uplink="agbr0"), "'agbr0' cannot be the way to the internet"),
        (replace(SPEC, guest=IPv4Address("100.64.0.9")), "the daemon cannot be at 100.64.0.9: it is in a tailnet"),
        (replace(SPEC, guest=IPv4Address("127.0.0.1")), "the daemon cannot be at 127.0.0.1: it is not an address"),
        (replace(SPEC, guest=IPv4Address("10.80.0.255")), "the daemon cannot be at 10.80.0.255"),
    ],
)
def test_what_cannot_be_anywhere_is_objected_to(spec: Spec, cause: str) -> None:
    (found,) = objections(spec)

    assert found.cause.startswith(cause)
    assert found.remedy


def test_a_host_without_anything_in_the_way_is_free_of_obstacles() -> None:
    assert obstacles.obstacles(SPEC, NOWHERE, SURVEY) == []


@pytest.mark.parametrize(
    ("observed", "survey", "cause"),
    [
        (replace(NOWHERE, link=replace(THEIRS, kind="")), SURVEY, "agbr0 exists and is not AgentLab's: an int"),
        (NOWHERE, replace(SURVEY, interfaces=None), "there is no /etc/network/interfaces"),
        (NOWHERE, replace(SURVEY, interfaces="auto lo\n"), "/etc/network/interfaces does not include"),
        (NOWHERE, replace(SURVEY, others={"/x/sdn": "auto agbr0\n"}), "/x/sdn defines an interface agbr0"),
        (NOWHERE, replace(SURVEY, links=frozenset({"lo"})), "there is no interface vmbr0"),
        (
            replace(NOWHERE, files={files.SYSCTL: File(content="net.ipv4.ip_forward=1\n")}),
            SURVEY,
            "/etc/sysctl.d/60-agentlab-host-network.conf is there and was not written by AgentLab",
        ),
        (
            replace(NOWHERE, record=Record(bridge="agbr1", subnet=SPEC.subnet, uplink="vmbr0")),
            SURVEY,
            "this host has the agent bridge agbr1 with 10.80.0.0/24 and uplink vmbr0",
        ),
        (
            NOWHERE,
            replace(SURVEY, taken=(Taken(network=IPv4Network("10.80.0.0/16"), what="route 10.80.0.0/16 dev wg0"),)),
            "10.80.0.0/24 is in use: route 10.80.0.0/16 dev wg0",
        ),
    ],
)
def test_each_obstacle_is_named_with_what_helps(observed: Observed, survey: Survey, cause: str) -> None:
    (found,) = obstacles.obstacles(SPEC, observed, survey)

    assert found.cause.startswith(cause)
    assert found.remedy


def test_a_clash_names_a_network_that_is_free() -> None:
    taken = tuple(Taken(network=IPv4Network(each), what="x") for each in ("10.80.0.0/16", "10.85.0.0/16"))

    (found,) = obstacles.obstacles(SPEC, NOWHERE, replace(SURVEY, taken=taken))

    assert found.remedy == "Take another: --subnet 10.90.0.0/24"


def test_a_bridge_that_was_made_and_not_yet_marked_is_ours() -> None:
    halfway = replace(BEFORE, link=replace(LINK, alias="", up=False, addresses=()))

    assert obstacles.obstacles(SPEC, halfway, SURVEY) == []
    assert "run ip link set dev agbr0 alias 'agentlab host-network'" in map(str, plan.set_up(SPEC, halfway))
    assert "run ip link del agbr0" in map(str, plan.undo(SPEC, halfway))


def test_the_way_is_that_of_the_main_table_and_of_the_longest_prefix() -> None:
    routes = [
        {"dst": "default", "dev": "vmbr0", "gateway": "192.168.1.1"},
        {"dst": "default", "dev": "tailscale0", "table": "52"},
        {"dst": "172.20.0.0/24", "dev": "vmbr7"},
        {"dst": "172.20.0.9", "dev": "wg0"},
    ]
    asked = ("9.9.9.9", "172.20.0.8", "172.20.0.9")

    assert [look.way_to(IPv4Address(each), routes) for each in asked] == ["vmbr0", "vmbr7", "wg0"]


def test_our_routing_is_told_from_everybody_elses() -> None:
    shown: list[Mapping[str, Any]] = [
        {"priority": 0, "src": "all", "table": "local"},
        {"priority": 1270, "src": "all", "dst": "10.80.0.0", "dstlen": 24, "table": "main"},
        {"priority": 1271, "src": "all", "iif": "vmbr7", "table": "main"},
        {"priority": 1272, "src": "all", "iif": "agbr0", "iif_detached": None, "action": "unreachable"},
    ]

    assert look.parse_routing(shown, routing(SPEC)) == {routing(SPEC)[0], routing(SPEC)[2]}


def test_the_name_server_that_is_proposed_is_one_of_the_internet() -> None:
    asked = ["127.0.0.53", "100.100.100.100", "192.168.1.1", "2001:db8::1", "9.9.9.9"]

    assert obstacles.public_nameserver(asked) == IPv4Address("9.9.9.9")


def _standing() -> Observed:
    """All as it is after a set-up."""
    written = _written(plan.set_up(SPEC, BEFORE))
    return Observed(
        files={path: File(content=content) for path, content in written.items()},
        enabled=True,
        directories=frozenset({Path("/"), Path("/etc")}),
        record=parse_record(written[files.RECORD]),
        link=LINK,
        table=True,
        rules=True,
        routing=frozenset(routing(SPEC)),
        settings=files.settings(SPEC),
    )


def _written(steps: list[plan.Step]) -> dict[Path, str]:
    return {each.path: each.file.content for each in steps if isinstance(each, Write)}


def _place(steps: list[plan.Step], words: str) -> int:
    return next(index for index, each in enumerate(steps) if words in str(each))
