"""Carries weights from the trainer to the engines, and proves that they arrived."""

from tandem.sync.copied import CopiedSync
from tandem.sync.shared import SharedSync

__all__ = ["CopiedSync", "SharedSync"]
