"""Timings against peers, paired in one run, and counts of what came out right.

One benchmark is one file with a function `cases(device)` that is timed, or `run(out)` that writes
its own table; and one line here.
"""

from __future__ import annotations

# name of the module -> what it measures
BENCHMARKS = {
    "integrals": "batches of integrals, easy ones and boxes, against SciPy",
    "honesty": "silent wrong answers and false flags of integrals and expectations",
    "honesty_random": "the same with each random method forced",
    "coverage": "how often the bars of random methods hold the truth",
    "monte_carlo": "random methods against vegas, QMCPy and SciPy, and long streams",
    "divergences": "closed forms against torch's, and pairs that have none",
    "likelihood": "batches of regressions, one small minimum, the cost of the loop",
    "posteriordb": "posteriors of posteriordb: right within 0.05 sd, or flagged",
    "vi_small": "time to a converged posterior against Pyro's and NumPyro's SVI",
    "vi": "time to the error on ten posteriors against four peers",
    "training": "steps of a variational autoencoder against Pyro's and loops written in torch",
    "vae_mnist": "nats and speed of a variational autoencoder against a loop written in torch",
    "vi_steps": "the cost of a stochastic step, and of many fits at once",
    "policy": "CartPole solved against Stable-Baselines3, and copies stepped in tensors",
}
