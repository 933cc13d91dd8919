"""Which number comes next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab.backends.interface import Refused
from agentlab.backends.proxmox.vmids import VmidRange, free_vmid

RANGE = VmidRange(first=20000, last=20009)


@given(st.sets(st.integers(19995, 20015)), st.sets(st.integers(19995, 20015)), st.floats(0, 1, exclude_max=True))
def test_a_number_is_in_the_range_and_neither_used_nor_reserved(
    used: set[int], reserved: set[int], fraction: float
) -> None:
    free = set(range(20000, 20010)) - used - reserved
    if not free:
        with pytest.raises(Refused):
            free_vmid(RANGE, used, reserved, fraction)
    else:
        assert free_vmid(RANGE, used, reserved, fraction) in free


def test_where_the_search_begins_is_decided_by_chance_and_it_goes_round() -> None:
    assert [free_vmid(RANGE, (), (), each) for each in (0.0, 0.5, 0.999)] == [20000, 20005, 20009]
    assert free_vmid(RANGE, {20009}, {20000}, 0.95) == 20001


def test_an_exhausted_range_is_refused_with_its_name_and_its_setting() -> None:
    with pytest.raises(
        Refused, match="all 10 VMIDs of the range 20000-20009 are taken, 4 of them by AgentLab"
    ) as caught:
        free_vmid(RANGE, range(20000, 20006), range(20006, 20010), 0.3, setting="proxmox.vmid_range")

    assert "`proxmox.vmid_range`" in caught.value.remedy


def test_a_range_is_read_as_it_is_shown() -> None:
    assert VmidRange.parse(" 20000 - 29999 ") == VmidRange(first=20000, last=29999)
    assert str(VmidRange.parse("20000-29999")) == "20000-29999"


@pytest.mark.parametrize("text", ["", "20000", "a-b", "30000-20000", "50-99", "1-2-3", "100-1000000000"])
def test_what_is_no_range_of_vmids_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="range of VMIDs"):
        VmidRange.parse(text)
