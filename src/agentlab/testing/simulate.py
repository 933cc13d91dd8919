"""`python -m agentlab.testing.simulate --seed N`: one simulated run, to see a failure again."""

from __future__ import annotations

import click

from agentlab.testing.scenarios import stormy_night


@click.command()
@click.option("--seed", default=0, help="The first seed.")
@click.option("--seeds", default=1, help="How many seeds.")
def main(seed: int, seeds: int) -> None:
    """Run stormy nights and say which seeds failed."""
    failed = []
    for each in range(seed, seed + seeds):
        try:
            stormy_night(each)
        except AssertionError as error:
            failed.append(each)
            click.echo(f"seed {each}: {error}")
    click.echo(f"{seeds} seeds, failed: {failed or 'none'}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
