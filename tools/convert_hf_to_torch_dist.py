"""Hugging Face folder to torch_dist: `--hf-checkpoint P --save P`, and model flags to check."""

import sys

from tandem.cli.main import main

sys.exit(main(["convert", "to-torch-dist", *sys.argv[1:]]))
