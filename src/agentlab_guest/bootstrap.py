"""The bootstrap: what the daemon gives to a guest that redeems its grant."""

from __future__ import annotations

from agentlab_guest.record import fields, record
from agentlab_guest.strict import (
    Data,
    Malformed,
    checked,
    count,
    digest,
    dump,
    integer,
    list_of,
    map_of,
    maybe,
    one_of,
    parse_object,
    seconds,
    text,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TASK_LENGTH_MAX = 2 << 20
_AGENT = {
    "name": text(64),
    "argv": list_of(text(4096), 256),
    "prompt": one_of("argument", "file", "stdin"),
}
_REPO = {"url": maybe(text(4096)), "bundle": maybe(digest), "bundle_bytes": count, "ref": maybe(text(1024))}
_SHAPE = {
    "job": text(64),
    "mode": one_of("run", "collect"),
    "agent": lambda value: type(value) is dict,
    "task": text(TASK_LENGTH_MAX),
    "repo": lambda value: type(value) is dict,
    "env": map_of(text(256 << 10), 1024),
    "redact": list_of(text(64 << 10), 1024),
    "user": text(64),
    "work_dir": text(1024),
    "branch": text(200),
    "git_name": text(200),
    "git_email": text(200),
    "timeout_s": seconds,
    "stop_grace_s": seconds,
    "collect_s_max": seconds,
    "heartbeat_s": seconds,
    "globs": list_of(text(1024), 256),
    "file_bytes_max": integer,
    "total_bytes_max": integer,
    "count_max": count,
}


@record
class AgentCommand:
    """How the agent is started.  `prompt`: where the task goes: argument, file ({task_file} in argv) or stdin."""

    name: str
    argv: tuple[str, ...]
    prompt: str


@record
class RepoSpec:
    """Where the work tree comes from: at most one of `url` and `bundle` (a SHA-256); neither means an empty one."""

    url: str | None = None
    bundle: str | None = None
    bundle_bytes: int = 0
    ref: str | None = None


@record
class Bootstrap:
    """A job as its guest gets it.  Holds secrets: never logged, never written outside the tmpfs.

    `file_bytes_max` and `total_bytes_max` bound the declared artifacts; 0 means no limit.
    """

    job: str
    mode: str
    agent: AgentCommand
    task: str
    repo: RepoSpec
    env: dict[str, str]
    redact: tuple[str, ...]
    user: str
    work_dir: str
    branch: str
    git_name: str
    git_email: str
    timeout_s: float
    stop_grace_s: float
    collect_s_max: float
    heartbeat_s: float
    globs: tuple[str, ...]
    file_bytes_max: int
    total_bytes_max: int
    count_max: int

    def __repr__(self) -> str:
        return f"Bootstrap(job={self.job!r}, mode={self.mode!r}, …)"

    def encode(self) -> bytes:
        """The JSON that `parse_bootstrap` reads."""
        values: dict[str, Any] = fields(self)
        return dump(values | {"agent": fields(self.agent), "repo": fields(self.repo)})


def parse_bootstrap(raw: Data) -> Bootstrap:
    """Raises Malformed naming the first key that is missing, unknown, mistyped or out of range."""
    found = checked(parse_object(raw), _SHAPE, "bootstrap")
    agent = checked(found["agent"], _AGENT, "bootstrap.agent")
    repo = checked(found["repo"], _REPO, "bootstrap.repo")
    if not agent["argv"]:
        raise Malformed("bootstrap.agent: argv is empty")
    if repo["url"] is not None and repo["bundle"] is not None:
        raise Malformed("bootstrap.repo: url and bundle exclude each other")
    if not found["work_dir"].startswith("/") or found["work_dir"].rstrip("/") == "" or not found["branch"]:
        raise Malformed("bootstrap: work_dir must be absolute and not /, branch must have a name")
    if any("=" in name or "\0" in name + value for name, value in found["env"].items()):
        raise Malformed("bootstrap.env: a name contains = or a value contains a zero byte")
    if any("\0" in each for each in (*agent["argv"], found["work_dir"], found["user"], found["task"])):
        raise Malformed("bootstrap: a text contains a zero byte")
    return Bootstrap(
        **found
        | {
            "agent": AgentCommand(**agent | {"argv": tuple(agent["argv"])}),
            "repo": RepoSpec(**repo),
            "redact": tuple(found["redact"]),
            "globs": tuple(found["globs"]),
        }
    )
