"""Run a job and watch it: run_job.py REPOSITORY TASK.  The work comes back as a patch on standard output."""

import sys
from pathlib import Path

from agentlab import Client


def main() -> int:
    """The exit status is 0 if the agent succeeded."""
    repository, task = Path(sys.argv[1]), sys.argv[2]
    with Client() as client:
        job = client.run_job(task, repository, agent="shell", timeout_s=600)
        for news in client.follow_job(job.id):
            if news.kind == "output":  # what the agent wrote is hostile text: a terminal should not see it raw
                sys.stderr.write(news.value.decode(errors="replace"))
        job = client.jobs.get(job.id)
        print(f"{job.id}: {job.state}", file=sys.stderr)
        if job.failure is not None:
            print(f"{job.failure.cause}\n{job.failure.remedy}", file=sys.stderr)
        if job.result is not None and job.result.head_commit != job.result.base_commit:
            sys.stdout.buffer.write(client.jobs.patch(job.id))
    return 0 if job.state == "succeeded" else 1


if __name__ == "__main__":
    sys.exit(main())
