"""NumPyro's SVI, as its users call it, and compiled once by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness import Contestant, Scores, Skipped
from benchmarks.problems import Problem, errors_of_draws
from benchmarks.pyro_svi import LEARNING_RATE, NUM_DRAWS, NUM_STEPS

try:
    import jax
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal
except ImportError:
    numpyro = None

_AS_USERS = f"NumPyro SVI, AutoNormal, {NUM_STEPS:,} Adam steps, svi.run"
_BY_HAND = "NumPyro SVI, the same in one hand-jitted lax.scan"
_LONG_STEPS = 10_000  # where more steps no longer lower the errors on these two posteriors
_LONG = f"NumPyro SVI, hand-jitted lax.scan, {_LONG_STEPS:,} Adam steps"


def contestants(problem: Problem) -> list[Contestant | Skipped]:
    """`svi.run` without progress bar, and the loop under one `jax.jit`, also for more steps.

    In jax's default float32.
    """
    if numpyro is None:
        why = "numpyro is not installed"
        return [Skipped(name, why) for name in (_AS_USERS, _BY_HAND, _LONG)]
    data = tuple(jax.numpy.asarray(t.numpy(), dtype="float32") for t in problem.data)
    guide = AutoNormal(MODELS[problem.name])
    svi = SVI(MODELS[problem.name], guide, numpyro.optim.Adam(LEARNING_RATE), Trace_ELBO())
    score = partial(_scored, problem, guide)
    where = jax.default_backend()
    compiles, warm = f"jax warm, compiles at every call ({where})", f"jitted, warm ({where})"
    long = partial(score, num_steps=_LONG_STEPS)
    return [
        Contestant(_AS_USERS, _run(svi, data), compiles, score),
        Contestant(_BY_HAND, _scan(svi, data, NUM_STEPS), warm, score),
        Contestant(_LONG, _scan(svi, data, _LONG_STEPS), warm, long),
    ]


def _run(svi: Any, data: tuple[Any, ...]) -> Callable[[int], Any]:
    def run(seed: int) -> Any:
        result = svi.run(jax.random.key(seed), NUM_STEPS, *data, progress_bar=False)
        return jax.block_until_ready(result.params)

    return run


def _scan(svi: Any, data: tuple[Any, ...], num_steps: int) -> Callable[[int], Any]:
    svi.init(jax.random.key(0), *data)  # sets up the guide, outside the compiled loop

    @jax.jit
    def loop(key: Any, data: tuple[Any, ...]) -> Any:
        state = svi.init(key, *data)
        step = lambda state, _: svi.update(state, *data)  # noqa: E731
        return svi.get_params(jax.lax.scan(step, state, length=num_steps)[0])

    return lambda seed: jax.block_until_ready(loop(jax.random.key(seed), data))


def _scored(problem: Problem, guide: Any, params: Any, num_steps: int = NUM_STEPS) -> Scores:
    draws = guide.sample_posterior(jax.random.key(1), params, sample_shape=(NUM_DRAWS,))
    return {
        "gradient evaluations": num_steps,
        "batched calls": num_steps,
        **errors_of_draws(problem, {name: np.array(value) for name, value in draws.items()}),
    }


def _eight_schools(effects: Any, std_errors: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(effects)):
        theta_raw = numpyro.sample("theta_raw", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * theta_raw)
        numpyro.sample("effect", dist.Normal(theta, std_errors), obs=effects)


def _logistic(x: Any, y: Any) -> None:
    w = numpyro.sample("w", dist.Normal(0.0, 2.5).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("tumours", len(x)):
        numpyro.sample("benign", dist.Bernoulli(logits=x @ w), obs=y)


MODELS = {"eight_schools": _eight_schools, "breast_cancer": _logistic}
