"""Tandem post-trains language models with reinforcement learning."""

__version__ = "0.1.0"
