"""Figures and pages that show a result and how far to trust it."""
