"""The command line. Heavy rooms are imported by the command that needs them."""

from tandem.cli.main import main

__all__ = ["main"]
