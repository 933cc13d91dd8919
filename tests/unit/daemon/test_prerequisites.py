"""What a daemon without root misses, told from what the machine's files say."""

from __future__ import annotations

from agentlab.daemon.prerequisites import IdRange, namespaces, ranges, subordinates


def test_ranges_are_granted_by_name_or_by_number() -> None:
    text = "other:100000:65536\nme:165536:1000\n1000:300000:65536\nbroken\nme:x:1\nme:9:0\n"

    assert ranges(text, "me", 1000) == [IdRange(first=165536, count=1000), IdRange(first=300000, count=65536)]


def test_enough_ids_of_both_kinds_are_no_finding() -> None:
    both = "me:100000:60000\nme:200000:10000\n"

    assert list(subordinates(both, both, "me", 1000)) == []


def test_the_remedy_names_a_range_that_nobody_has() -> None:
    found = next(iter(subordinates("other:100000:65536\n", "other:165536:65536\nme:300000:10\n", "me", 1000)))

    assert "/etc/subuid grants me 0" in found.detail
    assert "/etc/subgid grants me 10" in found.detail
    assert found.remedy == "As root: usermod --add-subuids 300010-365545 --add-subgids 300010-365545 me"


def test_a_kernel_setting_that_forbids_user_namespaces_is_named_with_its_command() -> None:
    found = namespaces({"kernel/apparmor_restrict_unprivileged_userns": "1", "user/max_user_namespaces": "96365"}, "no")

    assert "AppArmor" in found.detail
    assert found.remedy == "As root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"


def test_without_a_setting_to_blame_the_refusal_itself_is_told() -> None:
    found = namespaces({}, "unshare: Operation not permitted")

    assert found.detail == "unshare: Operation not permitted"
    assert "user, mount and network namespaces" in found.remedy
