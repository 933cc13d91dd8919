"""Connections at the door: a newcomer never waits for who is slow."""

from __future__ import annotations

from agentlab.backends.link.crowd import (
    COMING_BURST_MAX,
    COMING_PER_S_MAX,
    WAITING_MAX,
    WAITING_PER_ADDRESS_MAX,
    Crowd,
    Waiting,
)


class Hands:
    """A clock that is moved by hand."""

    at = 0.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


def crowded(crowd: Crowd, address: str, count: int, gone: list[str]) -> list[Waiting]:
    made = [Waiting(address, lambda n=n: gone.append(f"{address}/{n}")) for n in range(count)]
    for each in made:
        crowd.enter(each)
    return made


def test_the_oldest_of_an_address_leaves_for_its_next() -> None:
    crowd, gone = Crowd(Hands()), list[str]()

    crowded(crowd, "a", WAITING_PER_ADDRESS_MAX + 2, gone)

    assert gone == ["a/0", "a/1"]
    assert len(crowd) == WAITING_PER_ADDRESS_MAX


def test_the_most_crowded_address_makes_room_for_another() -> None:
    crowd, gone = Crowd(Hands()), list[str]()
    for number in range(WAITING_MAX // WAITING_PER_ADDRESS_MAX - 1):
        crowded(crowd, f"b{number}", WAITING_PER_ADDRESS_MAX - 1, gone)
    crowded(crowd, "a", WAITING_PER_ADDRESS_MAX, gone)
    crowded(crowd, "c", WAITING_MAX - len(crowd), gone)
    assert gone == []

    crowd.enter(Waiting("d", lambda: gone.append("d")))

    assert gone == ["a/0"]
    assert len(crowd) == WAITING_MAX


def test_who_was_let_in_is_not_made_to_leave() -> None:
    crowd, gone = Crowd(Hands()), list[str]()
    first = crowded(crowd, "a", WAITING_PER_ADDRESS_MAX, gone)[0]

    crowd.left(first)
    crowd.left(first)
    crowd.enter(Waiting("a", lambda: None))

    assert gone == []


def test_an_address_may_come_so_often_and_another_is_not_held_up_by_it() -> None:
    clock = Hands()
    crowd = Crowd(clock)

    assert [crowd.may_come("a") for _ in range(COMING_BURST_MAX + 1)].count(False) == 1
    assert crowd.may_come("b")

    clock.at += 1 / COMING_PER_S_MAX
    assert [crowd.may_come("a"), crowd.may_come("a")] == [True, False]
