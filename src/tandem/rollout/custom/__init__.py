"""Users' hooks as the rollout stage calls them."""
