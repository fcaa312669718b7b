"""Timings against peers, paired in one run.

One benchmark is one file with a function `cases(device)`, and one line here.
"""

from __future__ import annotations

# name of the module -> what it measures
BENCHMARKS = {
    "vi_small": "time to a converged posterior against Pyro's and NumPyro's SVI",
}
