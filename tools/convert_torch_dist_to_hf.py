"""Checkpoint to Hugging Face folder: `--input-dir P --output-dir P --origin-hf-dir P`."""

import sys

from tandem.cli.main import main

sys.exit(main(["convert", "to-hugging-face", *sys.argv[1:]]))
