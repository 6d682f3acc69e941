"""Starts an asynchronous run as launch scripts of the dialect do: `python3 train_async.py ...`.

The next rollout is sampled while this one is trained; `--asynchronous full` samples without end.
"""

import sys

from tandem.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "--asynchronous", "one-step", *sys.argv[1:]]))
