"""Builds the stages of a run and drives them: in this process, or with Ray on many."""

from tandem.runtime.run import run

__all__ = ["run"]
