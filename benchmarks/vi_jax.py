"""NumPyro's SVI and BlackJAX's Pathfinder on the posteriors of `vi`, compiled once and warm.

Both run the same NumPyro program, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.vi_models import Language
from benchmarks.vi_problems import Attempt, Posed
from benchmarks.vi_pyro import DECAY, NUM_DRAWS, RUNS

try:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
    from numpyro.infer.util import initialize_model
except ImportError:
    numpyro = None
try:
    import blackjax
except ImportError:
    blackjax = None

SVI_RUNS = (RUNS[-1], (0.03, 20_000))  # a step is so cheap that a longer run is worth a try
PATHS = 20
ITERATIONS, ELBO_DRAWS = 100, 200  # the defaults are 30 and 200
OPTIONS = {"maxiter": ITERATIONS, "num_samples": ELBO_DRAWS}
_RADIUS = 2.0  # starts are uniform in (−2, 2), as Stan's


def svi_attempts(posed: Posed) -> list[Attempt]:
    """AutoNormal and AutoMultivariateNormal in one jitted loop, one particle."""
    jax.config.update("jax_enable_x64", True)
    model, data = _model(posed), _data(posed)
    kinds = (AutoNormal, AutoMultivariateNormal)
    return [attempt for kind in kinds for attempt in _svi(posed, model, data, kind)]


def pathfinder_attempts(posed: Posed, *, multi: bool) -> list[Attempt]:
    """One path from one start, or 20 with Pareto-smoothed weights on their draws."""
    jax.config.update("jax_enable_x64", True)
    made = initialize_model(
        jax.random.key(0), _model(posed), model_args=_data(posed), dynamic_args=False
    )
    log_density = lambda z: -made.potential_fn(z)  # noqa: E731
    constrain = jax.jit(jax.vmap(made.postprocess_fn))
    build = _multi if multi else _single
    return [build(posed, log_density, made.param_info.z, constrain)]


def _model(posed: Posed) -> Callable[..., None]:
    return posed.written.program(Language(numpyro, dist, jnp))


def _data(posed: Posed) -> tuple[Any, ...]:
    return tuple(jnp.asarray(t.numpy()) for t in posed.data)


def _svi(posed: Posed, model: Any, data: tuple[Any, ...], kind: type) -> list[Attempt]:
    """Every run of one guide; rate and steps are arguments, so that one compilation serves."""
    guide = kind(model)
    SVI(model, guide, numpyro.optim.ClippedAdam(1.0), Trace_ELBO()).init(jax.random.key(0), *data)

    @jax.jit
    def loop(key: Any, data: tuple[Any, ...], rate: Any, steps: Any) -> Any:
        decayed = lambda step: rate * DECAY ** (step / steps)  # noqa: E731
        svi = SVI(model, guide, numpyro.optim.ClippedAdam(decayed), Trace_ELBO())
        step = lambda _, state: svi.update(state, *data)[0]  # noqa: E731
        return svi.get_params(jax.lax.fori_loop(0, steps, step, svi.init(key, *data)))

    @jax.jit
    def sample(params: Any) -> Any:
        return guide.sample_posterior(jax.random.key(1), params, sample_shape=(NUM_DRAWS,))

    def attempt(rate: float, steps: int) -> Attempt:
        def run(seed: int) -> Any:
            return jax.block_until_ready(loop(jax.random.key(seed), data, rate, steps))

        def score(params: Any) -> dict[str, float]:
            return {"gradient evaluations": steps, **posed.errors_of_draws(sample(params))}

        return Attempt(f"{kind.__name__}, {steps:,} steps from {rate}", run, score)

    return [attempt(*settings) for settings in SVI_RUNS]


def _starts(key: Any, like: Any, count: int) -> Any:
    flat, unravel = jax.flatten_util.ravel_pytree(like)
    shape = (count, len(flat))
    return jax.vmap(unravel)(jax.random.uniform(key, shape, flat.dtype, -_RADIUS, _RADIUS))


def _single(posed: Posed, log_density: Any, like: Any, constrain: Any) -> Attempt:
    @jax.jit
    def fit(key: Any) -> Any:
        start = jax.tree.map(lambda x: x[0], _starts(key, like, 1))
        run = blackjax.vi.pathfinder.approximate
        return run(key, log_density, start, **OPTIONS)

    def score(found: Any) -> dict[str, float]:
        state, info = found
        sample = blackjax.vi.pathfinder.sample
        x = constrain(sample(jax.random.key(1), state, NUM_DRAWS)[0])
        steps = int(jnp.isfinite(info.path.elbo).sum())
        counts = {"gradient evaluations": steps, "densities only": (ITERATIONS + 1) * ELBO_DRAWS}
        return {**counts, **posed.errors_of_draws(x)}

    run = lambda seed: jax.block_until_ready(fit(jax.random.key(seed)))  # noqa: E731
    return Attempt(f"{ITERATIONS} iterations", run, score)


def _multi(posed: Posed, log_density: Any, like: Any, constrain: Any) -> Attempt:
    multi = blackjax.vi.multipathfinder

    @jax.jit
    def fit(key: Any) -> Any:
        starts = _starts(key, like, PATHS)
        state, _ = multi.multi_approximate(key, log_density, starts, **OPTIONS)
        return state, multi.psis_weights(state)[0]

    def score(found: Any) -> dict[str, float]:
        state, log_weights = found
        pool = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), state.samples)
        x = posed.columns(constrain(pool))
        w = posed.weights(log_weights)
        mean = w @ x
        std = (w @ (x - mean).square()).sqrt()
        counts = {"densities only": PATHS * (ITERATIONS + 2) * ELBO_DRAWS}
        return {**counts, **posed.errors(mean, std)}

    run = lambda seed: jax.block_until_ready(fit(jax.random.key(seed)))  # noqa: E731
    return Attempt(f"{PATHS} paths of {ITERATIONS} iterations", run, score)
