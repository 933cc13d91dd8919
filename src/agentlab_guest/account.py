"""The user that the agent runs as."""

from __future__ import annotations

import os
import pwd

from agentlab_guest.record import record
from agentlab_guest.report import Failure

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class StepFailed(Exception):
    """A step of the runner failed, with what the user should know."""

    def __init__(self, phase: str, cause: str, remedy: str) -> None:
        super().__init__(cause)
        self.failure = Failure(phase=phase, cause=cause, remedy=remedy)


@record
class Account:
    """A row of the password file.  `switch` says whether this process must change to it."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str
    switch: bool

    @property
    def environment(self) -> dict[str, str]:
        """What a login would set."""
        names = {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.shell}
        return {"PATH": os.environ.get("PATH", PATH), "LANG": "C.UTF-8", **names}

    def own(self, path: str) -> None:
        """Give a file or directory, not what a link points to, to this user."""
        if self.switch:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)


def find_account(name: str) -> Account:
    """The account `name`.  Raises StepFailed if it does not exist or this process may not become it."""
    try:
        row = pwd.getpwnam(name)
    except KeyError:
        remedy = "Add the user to the template's recipe, or choose one that exists."
        raise StepFailed("prepare", f"the sandbox has no user {name!r}", remedy) from None
    if os.geteuid() not in (0, row.pw_uid):
        cause = f"the guest program runs as uid {os.geteuid()} and cannot become {name!r}"
        raise StepFailed("prepare", cause, "Start the guest program as root.")
    return Account(
        name=name,
        uid=row.pw_uid,
        gid=row.pw_gid,
        groups=tuple(os.getgrouplist(name, row.pw_gid)),
        home=row.pw_dir or "/",
        shell=row.pw_shell or "/bin/sh",
        switch=os.geteuid() != row.pw_uid,
    )
