"""Prepare: the agent's home, identity, task file and environment, and its command line."""

from __future__ import annotations

import os

from agentlab_guest.account import Account, StepFailed
from agentlab_guest.bootstrap import Bootstrap
from agentlab_guest.git import Git, GitFailed, Patience
from agentlab_guest.record import record

ARGUMENT_BYTES_MAX = (128 << 10) - 1  # the kernel's MAX_ARG_STRLEN
JOB_MARK = "AGENTLAB_JOB"


@record
class Launch:
    """How to start the agent.  `stdin` is a path."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    stdin: str


def prepare(job: Bootstrap, account: Account, patience: Patience) -> Launch:
    """Everything the agent finds when it starts.  Raises StepFailed and Aborted."""
    try:
        _home(account)
        task_file = _task_file(job, account)
        _identity(job, account, patience)
    except OSError as error:
        remedy = "Give the sandbox more disk, or correct the template."
        raise StepFailed("prepare", f"{error.filename}: {error.strerror}", remedy) from None
    argv = tuple(each.replace("{task_file}", task_file) for each in job.agent.argv)
    if job.agent.prompt == "argument":
        if len(job.task.encode()) > ARGUMENT_BYTES_MAX:
            remedy = "Put the text into a file of the repository and name that file in the task."
            cause = f"agent {job.agent.name} takes its task as an argument of at most {ARGUMENT_BYTES_MAX} bytes"
            raise StepFailed("prepare", cause, remedy)
        argv = (*argv, job.task)
    stdin = task_file if job.agent.prompt == "stdin" else "/dev/null"
    ours = {"TERM": "dumb", "AGENTLAB": "1", JOB_MARK: job.job, "AGENTLAB_BRANCH": job.branch}
    return Launch(argv=argv, env={**account.environment, **ours, **job.env}, cwd=job.work_dir, stdin=stdin)


def _home(account: Account) -> None:
    if not os.path.isdir(account.home):
        os.makedirs(account.home, mode=0o700)
        account.own(account.home)


def _task_file(job: Bootstrap, account: Account) -> str:
    path = f"/tmp/agentlab-task-{job.job}"
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(file, "wb") as task:
        task.write(job.task.encode())
    account.own(path)
    return path


def _identity(job: Bootstrap, account: Account, patience: Patience) -> None:
    """For repositories that the agent makes itself.  What a template has set up in the home stays."""
    git = Git(account, patience, trust_system=True)
    if os.path.exists(f"{account.home}/.gitconfig"):
        return
    values = {"user.name": job.git_name, "user.email": job.git_email, "safe.directory": job.work_dir}
    try:
        for key, value in values.items():
            git.run("config", "--global", key, value, cwd=account.home)
    except GitFailed:
        pass  # a home that its user may not write, as system users have: the work tree has its own identity
