"""Timings against peers, paired in one run, and counts of what came out right.

One benchmark is one file with a function `cases(device)` that is timed, or `run(out)` that writes
its own table; and one line here.
"""

from __future__ import annotations

# name of the module -> what it measures
BENCHMARKS = {
    "integrals": "batches of integrals, easy ones and boxes, against SciPy",
    "honesty": "silent wrong answers and false flags of integrals and expectations",
    "vi_small": "time to a converged posterior against Pyro's and NumPyro's SVI",
}
