"""`python -m agentlab.testing.proxmox`: a simulated cluster to play with."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from agentlab.testing.proxmox.cluster import RELEASES
from agentlab.testing.proxmox.guests import GuestHost
from agentlab.testing.proxmox.latency import Latency
from agentlab.testing.proxmox.process_guests import ProcessGuests
from agentlab.testing.proxmox.qemu_guests import QemuGuests
from agentlab.testing.proxmox.server import ProxmoxSim


@click.command()
@click.option("--version", "release", type=click.Choice(sorted(RELEASES)), default="9.2", help="The version to be.")
@click.option("--nodes", default=1, type=click.IntRange(1, 16), help="How many nodes.")
@click.option("--seed", default=0, help="The seed of all that is random.")
@click.option("--port", default=0, help="The first node's port; 0 takes a free one.")
@click.option("--realistic", is_flag=True, help="Let things take their time.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the files of the storage here.")
@click.option(
    "--guests",
    "kind",
    type=click.Choice(["none", "process", "qemu"]),
    default="none",
    help="What a started VM is: nothing, a stand-in, or a real VM; the latter two need root and --folder.",
)
def main(release: str, nodes: int, seed: int, port: int, realistic: bool, folder: Path | None, kind: str) -> None:
    """Serve a simulated Proxmox VE cluster on 127.0.0.1 until interrupted."""
    if kind != "none" and folder is None:
        raise click.UsageError("--guests needs --folder, for the files of their disks")
    asyncio.run(_serve(release, nodes, seed, port, realistic, folder, kind))


def _guests(kind: str, folder: Path | None) -> GuestHost | None:
    if kind == "none" or folder is None:
        return None
    return ProcessGuests(folder=folder / "guests") if kind == "process" else QemuGuests(folder=folder / "guests")


async def _serve(
    release: str, nodes: int, seed: int, port: int, realistic: bool, folder: Path | None, kind: str
) -> None:
    names = tuple(f"pve{number + 1}" for number in range(nodes))
    latency = Latency.realistic() if realistic else Latency.none()
    storage = None if folder is None else folder / "storage"
    made = ProxmoxSim(
        version=release,
        nodes=names,
        seed=seed,
        latency=latency,
        folder=storage,
        port=port,
        guests=_guests(kind, folder),
    )
    async with made as sim:
        sim.add_template()
        user, password = sim.administrator
        for name, url in sim.endpoints.items():
            click.echo(f"{name:12} {url}")
        click.echo(f"{'fingerprint':12} {sim.fingerprint}")
        click.echo(f"{'token':12} PVEAPIToken={sim.token()}")
        click.echo(f"{'log-in':12} {user} {password}")
        click.echo(f"{'template':12} 9000 on {names[0]}, storage local")
        await asyncio.Event().wait()


if __name__ == "__main__":
    main()
