"""A scratch directory beside the state directory that belongs to the agent's user.

git works there as that user, because it handles what the agent made; the state directory itself is closed to it.
"""

from __future__ import annotations

import os

from agentlab_guest.account import Account

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def fresh_area(state_directory: str, account: Account) -> str:
    """The path of an empty area.  Whatever was there is removed, never followed."""
    path = area_path(state_directory)
    remove(path)
    os.mkdir(path, mode=0o700)
    account.own(path)
    return path


def area_path(state_directory: str) -> str:
    """Where the area of this state directory lies."""
    return state_directory.rstrip("/") + ".work"


def remove(path: str) -> None:
    """Remove a file or a tree without following links.  Absence is success."""
    import shutil

    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
    elif os.path.isdir(path):
        shutil.rmtree(path)


def copy_tree(source: str, target: str, account: Account) -> None:
    """Copy a tree that we made, for `account`."""
    import shutil

    shutil.copytree(source, target, symlinks=True)
    own_tree(target, account)


def own_tree(top: str, account: Account) -> None:
    """Give a whole tree to `account`, not following links."""
    if account.switch:
        for path in _paths(top):
            account.own(path)


def _paths(top: str) -> Iterator[str]:
    yield top
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            yield f"{directory}/{name}"
