"""The embedded engine: paged cache, continuous batching, the trainer's own weights."""
