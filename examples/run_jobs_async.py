"""Run the same task on several repositories at the same time: run_jobs_async.py TASK REPOSITORY..."""

import asyncio
import sys

from agentlab import AsyncClient, Client
from agentlab.wire.responses import Job


def queue(task: str, repositories: list[str]) -> list[str]:
    """Send the repositories and queue a job for each; more than may run at a time wait for their turn."""
    with Client() as client:
        return [client.run_job(task, repository, agent="shell").id for repository in repositories]


async def results(jobs: list[str]) -> list[Job]:
    """All of them, once the last has ended."""
    async with AsyncClient() as client, asyncio.TaskGroup() as group:
        waits = [group.create_task(client.wait_job(job)) for job in jobs]
    return [wait.result() for wait in waits]


if __name__ == "__main__":
    ended = asyncio.run(results(queue(sys.argv[1], sys.argv[2:])))
    for job in ended:
        print(f"{job.id}  {job.state}  {job.repo.origin}")
    sys.exit(0 if all(job.state == "succeeded" for job in ended) else 1)
