"""One decoder that trainer and engine both run; a family holds differences only."""
