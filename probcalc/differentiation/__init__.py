"""Derivatives: tracing a function once and running its value and gradient in batches."""
