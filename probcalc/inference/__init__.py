"""Posteriors: from a model to moments with error bars and a verdict."""
