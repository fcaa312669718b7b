"""A million closed forms against torch's, and ten thousand pairs that have none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

import probcalc as pc
from benchmarks.harness import Case, Contestant, Scores
from probcalc.distributions.rebuild import in_double

NOTES = (
    "Closed forms: 1,000,000 pairs whose parameters are uniform in [0.5, 3] (probabilities in "
    "[0.1, 0.9]); vectors 100,000 pairs. Ratios are to torch's time for the same pairs. torch "
    "computes in the precision of the parameters; we in float64 whatever it is. `error` is the "
    "largest relative error against our float64, over pairs 1e-3 apart and more.",
    "Our error bars are computed when they are read: `with bars`. Parameters are checked in "
    "every call of ours, and never in torch's.",
    "No closed form: 10,000 Student t distributions (2.5 to 10 degrees of freedom) against "
    "mixtures of two normals, relative tolerance 1e-6; `error` is the largest relative error "
    "against adaptive quadrature to 1e-11, `over the bar` the largest error in bars. The peer "
    "averages as many draws as are commonly taken.",
)
_MANY, _VECTORS, _PAIRS, _DRAWS = 1_000_000, 100_000, 10_000, 1_000

Make = Callable[..., td.Distribution]


def cases(device: str) -> list[Case]:
    """Closed forms in both precisions, then mixtures."""
    forms = [
        _closed(name, dtype, device) for name in PAIRS for dtype in (torch.float64, torch.float32)
    ]
    return [*forms, _mixtures(device)]


def _of(family: Any, *ranges: tuple[float, float]) -> Make:
    """A family whose parameters are uniform in these ranges."""

    def make(n: int, **like: Any) -> td.Distribution:
        parameters = (torch.empty(n, **like).uniform_(*ends) for ends in ranges)
        return family(*parameters, validate_args=False)

    return make


def _vector(family: Any, k: int) -> Make:
    def make(n: int, **like: Any) -> td.Distribution:
        return family(torch.empty(n // 5, k, **like).uniform_(0.5, 3), validate_args=False)

    return make


def _normal_vector(n: int, **like: Any) -> td.Distribution:
    n = n * _VECTORS // _MANY
    lower = torch.empty(n, 3, 3, **like).uniform_(0.5, 3).tril()
    place = torch.empty(n, 3, **like).uniform_(0.5, 3)
    return td.MultivariateNormal(place, scale_tril=lower, validate_args=False)


_POSITIVE, _SHARE = (0.5, 3.0), (0.1, 0.9)
_NORMAL = _of(td.Normal, _POSITIVE, _POSITIVE)
_LAPLACE = _of(td.Laplace, _POSITIVE, _POSITIVE)
_GUMBEL = _of(td.Gumbel, _POSITIVE, _POSITIVE)
_GAMMA = _of(td.Gamma, _POSITIVE, _POSITIVE)
_BETA = _of(td.Beta, _POSITIVE, _POSITIVE)
_PARETO = _of(td.Pareto, _POSITIVE, (2.5, 5.0))
_EXPONENTIAL, _POISSON = _of(td.Exponential, _POSITIVE), _of(td.Poisson, _POSITIVE)
_BERNOULLI, _GEOMETRIC = _of(td.Bernoulli, _SHARE), _of(td.Geometric, _SHARE)
_INNER = _of(td.Uniform, (0.0, 0.5), (0.6, 1.0))
_OUTER = _of(td.Uniform, (-3.0, -0.5), (1.5, 4.0))
_DIRICHLET = _vector(td.Dirichlet, 5)
_CATEGORICAL = _vector(lambda t, validate_args: td.Categorical(None, t, validate_args), 5)
PAIRS: dict[str, tuple[Make, Make]] = {
    "normal": (_NORMAL, _NORMAL),
    "Laplace": (_LAPLACE, _LAPLACE),
    "Cauchy": (_of(td.Cauchy, _POSITIVE, _POSITIVE),) * 2,
    "Gumbel": (_GUMBEL, _GUMBEL),
    "exponential": (_EXPONENTIAL, _EXPONENTIAL),
    "gamma": (_GAMMA, _GAMMA),
    "beta": (_BETA, _BETA),
    "half-normal": (_of(td.HalfNormal, _POSITIVE),) * 2,
    "Pareto": (_PARETO, _PARETO),
    "uniform": (_INNER, _OUTER),
    "Bernoulli": (_BERNOULLI, _BERNOULLI),
    "geometric": (_GEOMETRIC, _GEOMETRIC),
    "Poisson": (_POISSON, _POISSON),
    "categorical of 5, 200,000": (_CATEGORICAL, _CATEGORICAL),
    "Dirichlet of 5, 200,000": (_DIRICHLET, _DIRICHLET),
    "normal vectors of 3, 100,000": (_normal_vector, _normal_vector),
    "Laplace, normal": (_LAPLACE, _NORMAL),
    "gamma, normal": (_GAMMA, _NORMAL),
    "exponential, normal": (_EXPONENTIAL, _NORMAL),
    "Gumbel, normal": (_GUMBEL, _NORMAL),
    "beta, normal": (_BETA, _NORMAL),
    "normal, Laplace": (_NORMAL, _LAPLACE),
    "normal, Gumbel": (_NORMAL, _GUMBEL),
    "exponential, Gumbel": (_EXPONENTIAL, _GUMBEL),
    "gamma, Gumbel": (_GAMMA, _GUMBEL),
    "beta, gamma": (_BETA, _GAMMA),
    "Pareto, exponential": (_PARETO, _EXPONENTIAL),
    "Bernoulli, Poisson": (_BERNOULLI, _POISSON),
}


def _closed(name: str, dtype: torch.dtype, device: str) -> Case:
    torch.manual_seed(0)
    p, q = (make(_MANY, dtype=dtype, device=device) for make in PAIRS[name])
    score = partial(_largest, p, q)
    # torch keeps the shares of a categorical distribution from one call to the next
    anew = _anew if isinstance(p, td.Categorical) else lambda d: d
    return Case(
        f"{name}, {str(dtype).removeprefix('torch.')}",
        [
            Contestant("torch", lambda seed: td.kl_divergence(anew(p), anew(q)), score=score),
            Contestant("probcalc", lambda seed: pc.kl(anew(p), anew(q)).value, score=score),
            Contestant(
                "probcalc, with bars", lambda seed: _value_and_bar(anew(p), anew(q)), score=score
            ),
        ],
    )


def _anew(d: td.Categorical) -> td.Categorical:
    return td.Categorical(logits=d.logits, validate_args=False)


def _value_and_bar(p: td.Distribution, q: td.Distribution) -> Tensor:
    found = pc.kl(p, q)
    assert found.error.shape == found.value.shape
    return found.value


def _largest(p: td.Distribution, q: td.Distribution, value: Tensor) -> Scores:
    exact = pc.kl(*(in_double(d) for d in (p, q))).value
    apart = exact > 1e-3
    return {"error": float(((value.double() - exact) / exact).abs()[apart].max())}


def _mixtures(device: str) -> Case:
    torch.manual_seed(0)
    like: dict[str, Any] = {"dtype": torch.float64, "device": device}
    p = _of(td.StudentT, (2.5, 10.0), (-2.0, 2.0), (0.5, 1.5))(_PAIRS, **like)
    weights = torch.rand(_PAIRS, 2, **like) + 0.1
    parts = td.Normal(2 * torch.randn(_PAIRS, 2, **like), torch.rand(_PAIRS, 2, **like) + 0.5)
    q = td.MixtureSameFamily(td.Categorical(weights), parts)
    exact = pc.kl(p, q, rtol=1e-11, method=pc.GaussKronrod()).value

    def score(found: pc.Estimate | Tensor) -> Scores:
        value = found.value if isinstance(found, pc.Estimate) else found
        away = (value - exact).abs()
        scores = {"error": float((away / exact).max())}
        if isinstance(found, pc.Estimate):
            scores["over the bar"] = float((away / found.error).max())
        return scores

    return Case(
        "10,000 Student t against mixtures",
        [
            Contestant("probcalc, to 1e-6", lambda seed: pc.kl(p, q, rtol=1e-6), score=score),
            Contestant("torch, 1,000 draws each", lambda seed: _by_draws(p, q, seed), score=score),
        ],
    )


def _by_draws(p: td.Distribution, q: td.Distribution, seed: int) -> Tensor:
    torch.manual_seed(seed)
    x = p.sample((_DRAWS,))
    return (p.log_prob(x) - q.log_prob(x)).mean(dim=0)
