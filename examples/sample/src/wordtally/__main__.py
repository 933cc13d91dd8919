"""The command line."""

import argparse
import sys
from pathlib import Path

from wordtally.count import tally, top


def main(arguments: list[str] | None = None) -> int:
    """Print the most frequent words of the named files, or of standard input."""
    parser = argparse.ArgumentParser(prog="wordtally", description="Count the words of texts.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many words to show")
    given = parser.parse_args(arguments)
    texts = (path.read_text(encoding="utf-8") for path in given.files) if given.files else [sys.stdin.read()]
    for word, count in top(tally(texts), given.top):
        print(f"{count:3}  {word}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
