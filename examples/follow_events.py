"""Print events as they happen: follow_events.py [SINCE [COUNT]].  Ends after COUNT events, or with Ctrl-C."""

import itertools
import sys

from agentlab import Client


def main() -> None:
    """One line for each event: its number, instant, type, subject and fields."""
    since = int(sys.argv[1]) if len(sys.argv) > 1 else None
    count = int(sys.argv[2]) if len(sys.argv) > 2 else None
    with Client() as client:
        for event in itertools.islice(client.follow_events(since), count):
            fields = " ".join(f"{name}={value!r}" for name, value in event.data.items())
            print(event.seq, event.at.isoformat(), event.type, event.subject, fields, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
