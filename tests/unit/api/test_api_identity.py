"""Who calls, and what that one may do."""

from __future__ import annotations

import pytest

from agentlab.api.identity import GRANTS, Peer, Role, identify
from agentlab.errors import Forbidden
from agentlab.wire.routes import ROUTES


def _peer(uid: int) -> Peer:
    return Peer(uid=uid, gid=uid, pid=1)


@pytest.mark.parametrize("uid", [0, 500])
def test_root_and_the_daemons_own_user_are_admin(uid: int) -> None:
    assert identify(_peer(uid), own_uid=500).role is Role.ADMIN


def test_anybody_else_who_can_open_the_socket_is_a_user_and_sees_only_what_is_its_own() -> None:
    identity = identify(_peer(1000), own_uid=500)
    assert (identity.name, identity.role, identity.owner) == ("uid:1000", Role.USER, "uid:1000")


def test_a_role_that_is_set_for_a_user_holds_but_never_takes_root_down() -> None:
    roles = {1000: Role.VIEWER, 0: Role.VIEWER}
    assert identify(_peer(1000), 500, roles).role is Role.VIEWER
    assert identify(_peer(0), 500, roles).role is Role.ADMIN


def test_every_permission_that_a_row_asks_for_is_granted_to_the_admin() -> None:
    assert {route.permission for route in ROUTES.values()} <= GRANTS[Role.ADMIN]


def test_no_role_has_a_permission_that_no_row_asks_for() -> None:
    asked = {route.permission for route in ROUTES.values()}
    assert all(granted <= asked for granted in GRANTS.values())


def test_a_viewer_can_change_nothing() -> None:
    assert all(permission.endswith(":read") for permission in GRANTS[Role.VIEWER])


def test_where_other_users_look_alike_only_the_daemons_own_is_served() -> None:
    own = identify(_peer(0), own_uid=0, only_user=1000)

    assert (own.name, own.role) == ("uid:1000", Role.ADMIN)
    with pytest.raises(Forbidden):
        identify(_peer(65534), own_uid=0, only_user=1000)
