"""Starts a run as launch scripts of the dialect do: `python3 train.py --flag value ...`."""

import sys

from tandem.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
