"""The stages of a run over many processes. The only place that imports Ray."""
