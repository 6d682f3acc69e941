"""Stock SGLang servers as the rollout engine, driven over HTTP only."""
