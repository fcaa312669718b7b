"""The loop for noisy objectives: mini-batches and Monte Carlo gradients."""
