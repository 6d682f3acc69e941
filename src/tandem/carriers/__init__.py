"""Ways by which weights travel from a trainer's process to an engine's."""
