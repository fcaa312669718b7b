"""What integration needs to know of distributions: supports, quantiles, moments, parameters."""
