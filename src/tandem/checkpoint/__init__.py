"""Weights and state on disk; `names.py` is the one place that knows parameter names."""
