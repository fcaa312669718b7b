"""One loop for deterministic objectives, with its methods."""
