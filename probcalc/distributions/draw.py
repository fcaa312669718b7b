"""Draws that use one generator and nothing else, with gradients where the family allows them.

torch's own `sample` and `rsample` take no generator. Here normal noise is shifted and scaled,
gamma noise carries torch's implicit gradients, counts come from torch's samplers, and other
families on the line invert their distribution function at uniform numbers.

Figurnov, Mohamed & Mnih (2018), Implicit reparameterization gradients, for mixtures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from probcalc._random import draw_seed, forked
from probcalc.distributions.cdf import cdf
from probcalc.distributions.families import HasTails, is_point_mass, law_of
from probcalc.distributions.inverses import implied
from probcalc.distributions.log_density import log_density
from probcalc.distributions.quantile import quantile
from probcalc.distributions.rebuild import in_double, taken_apart
from probcalc.distributions.special import tracked
from probcalc.distributions.support import support_of

Shape = tuple[int, ...]
_LEAST_UNIFORM = 2.0**-54  # half the spacing of torch's uniform numbers, instead of zero


def draw(dist: td.Distribution, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Independent draws, as `dist.rsample(shape)` or, for want of gradients, `dist.sample`.

    Families that are not known are drawn by their own code, under a seed that the generator
    gives; torch's default generator is left as it is.

    Args:
        dist: Any distribution.
        shape: How many draws, in front of the batch.
        generator: The only source of randomness; its device makes the noise.

    Returns:
        Draws of shape ``(*shape, *batch, *event)``.
    """
    shape = tuple(shape)
    rule = next((_RULES[f] for f in type(dist).__mro__ if f in _RULES), None)
    if rule is not None:
        return rule(dist, shape, generator)
    if is_point_mass(dist):
        return dist.v.expand(dist._extended_shape(shape))
    if isinstance(dist, HasTails) or law_of(dist) is not None:
        return _by_quantile(dist, shape, generator)
    if isinstance(dist, td.TransformedDistribution):
        return _transformed(dist, shape, generator)
    return _by_its_own_code(dist, shape, generator)


def sampled(
    dist: td.Distribution, count: int, seed: int, device: torch.device, *, gradient: bool
) -> Tensor:
    """Draws by the distribution's own code, but of families where that has another law."""
    base = dist
    while isinstance(base, td.Independent):
        base = base.base_dist
    if isinstance(base, td.LKJCholesky):
        x = draw(dist, (count,), torch.Generator(device).manual_seed(seed))
        return x if gradient else x.detach()
    with forked(seed, device):
        return dist.rsample((count,)) if gradient else dist.sample((count,))


def _by_quantile(dist: td.Distribution, shape: Shape, generator: torch.Generator) -> Tensor:
    like = _parameter(dist)
    u = _uniform(dist._extended_shape(shape), like, generator)
    return quantile(dist, u).to(like.dtype)


def _transformed(
    dist: td.TransformedDistribution, shape: Shape, generator: torch.Generator
) -> Tensor:
    x = draw(dist.base_dist, shape, generator)
    for transform in dist.transforms:
        x = transform(x)
    return x


def _by_its_own_code(dist: td.Distribution, shape: Shape, generator: torch.Generator) -> Tensor:
    with forked(draw_seed(generator), _parameter(dist).device):
        return dist.rsample(shape) if dist.has_rsample else dist.sample(shape)


def _parameter(dist: td.Distribution) -> Tensor:
    """Some floating-point parameter, for its dtype and device."""
    try:
        tensors = taken_apart(dist)[0]
    except NotImplementedError:
        tensors = [v for v in vars(dist).values() if torch.is_tensor(v)]
    return next((t for t in tensors if t.is_floating_point()), torch.empty(0))


def _uniform(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    u = torch.rand(tuple(shape), dtype=torch.float64, generator=generator, device=generator.device)
    return u.clamp(min=_LEAST_UNIFORM).to(like.device)


def _noise(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    z = torch.randn(tuple(shape), dtype=like.dtype, generator=generator, device=generator.device)
    return z.to(like.device)


def _log_gamma_noise(a: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Log of Gamma(a, 1) in float64: G(a) is G(a + 1) u^(1/a), which small a do not underflow.

    Marsaglia & Tsang (2000), A simple method for generating gamma variables, section 6.
    """
    a = a.double().expand(tuple(shape))
    larger = torch._standard_gamma((a + 1).to(generator.device), generator=generator)
    return larger.to(a.device).log() + _uniform(shape, a, generator).log() / a


def _normal(d: td.Normal, shape: Shape, generator: torch.Generator) -> Tensor:
    return d.loc + d.scale * _noise(d._extended_shape(shape), d.loc, generator)


def _gamma(d: td.Gamma, shape: Shape, generator: torch.Generator) -> Tensor:
    log_g = _log_gamma_noise(d.concentration, d._extended_shape(shape), generator)
    return (log_g.exp() / d.rate).to(d.rate.dtype)


def _inverse_gamma(d: Any, shape: Shape, generator: torch.Generator) -> Tensor:
    log_g = _log_gamma_noise(d.concentration, d._extended_shape(shape), generator)
    return ((-log_g).exp() * d.rate).to(d.rate.dtype)


def _beta(d: td.Beta, shape: Shape, generator: torch.Generator) -> Tensor:
    wide = d._extended_shape(shape)
    ones, zeros = (
        _log_gamma_noise(a, wide, generator) for a in (d.concentration1, d.concentration0)
    )
    return torch.sigmoid(ones - zeros).to(d.concentration1.dtype)


def _dirichlet(d: td.Dirichlet, shape: Shape, generator: torch.Generator) -> Tensor:
    log_g = _log_gamma_noise(d.concentration, d._extended_shape(shape), generator)
    return torch.softmax(log_g, dim=-1).to(d.concentration.dtype)


def _student(d: td.StudentT, shape: Shape, generator: torch.Generator) -> Tensor:
    wide = d._extended_shape(shape)
    z = _noise(wide, d.loc.double(), generator)
    log_chi2 = _log_gamma_noise(0.5 * d.df, wide, generator)
    t = z * (0.5 * ((0.5 * d.df).log() - log_chi2)).exp()
    return (d.loc + d.scale * t).to(d.loc.dtype)


def _f(d: td.FisherSnedecor, shape: Shape, generator: torch.Generator) -> Tensor:
    wide = d._extended_shape(shape)
    top, bottom = (_log_gamma_noise(0.5 * df, wide, generator) for df in (d.df1, d.df2))
    return ((top - bottom).exp() * d.df2 / d.df1).to(d.df1.dtype)


def _multivariate_normal(
    d: td.MultivariateNormal, shape: Shape, generator: torch.Generator
) -> Tensor:
    z = _noise(d._extended_shape(shape), d.loc, generator)
    return d.loc + (d._unbroadcasted_scale_tril @ z[..., None])[..., 0]


def _low_rank_normal(
    d: td.LowRankMultivariateNormal, shape: Shape, generator: torch.Generator
) -> Tensor:
    wide = d._extended_shape(shape)
    common = _noise([*wide[:-1], d.cov_factor.shape[-1]], d.loc, generator)
    own = _noise(wide, d.loc, generator)
    factor, diagonal = d._unbroadcasted_cov_factor, d._unbroadcasted_cov_diag
    return d.loc + (factor @ common[..., None])[..., 0] + diagonal.sqrt() * own


def _poisson(d: td.Poisson, shape: Shape, generator: torch.Generator) -> Tensor:
    return _counted(torch.poisson, d._extended_shape(shape), generator, d.rate)


def _bernoulli(d: td.Bernoulli, shape: Shape, generator: torch.Generator) -> Tensor:
    return _counted(torch.bernoulli, d._extended_shape(shape), generator, d.probs)


def _binomial(d: td.Binomial, shape: Shape, generator: torch.Generator) -> Tensor:
    total = d.total_count.to(d.probs.dtype)
    return _counted(torch.binomial, d._extended_shape(shape), generator, total, d.probs)


def _negative_binomial(d: td.NegativeBinomial, shape: Shape, generator: torch.Generator) -> Tensor:
    """A Poisson variable whose rate is a gamma variable."""
    wide = d._extended_shape(shape)
    log_g = _log_gamma_noise(d.total_count.detach(), wide, generator)
    rate = (log_g + d.logits.detach()).exp()
    return _counted(torch.poisson, wide, generator, rate).to(d.logits.dtype)


def _counted(
    sampler: Callable[..., Tensor], shape: Shape, generator: torch.Generator, *parameters: Tensor
) -> Tensor:
    device = parameters[0].device
    expanded = (t.detach().expand(shape).to(generator.device).contiguous() for t in parameters)
    return sampler(*expanded, generator=generator).to(device)


def _geometric(d: td.Geometric, shape: Shape, generator: torch.Generator) -> Tensor:
    u = _uniform(d._extended_shape(shape), d.probs, generator)
    failures = (u.log() / torch.log1p(-d.probs.detach().double())).floor()
    return failures.to(d.probs.dtype)


def _categorical(d: td.Categorical, shape: Shape, generator: torch.Generator) -> Tensor:
    wide = d._extended_shape(shape)
    if not wide.numel():
        return torch.empty(wide, dtype=torch.int64, device=d.probs.device)
    rows = d.probs.detach().reshape(-1, d.probs.shape[-1]).to(generator.device)
    n = wide.numel() // len(rows)
    found = torch.multinomial(rows, n, replacement=True, generator=generator)  # (rows, n)
    return found.T.reshape(wide).to(d.probs.device)


def _one_hot(d: td.OneHotCategorical, shape: Shape, generator: torch.Generator) -> Tensor:
    index = _categorical(d._categorical, shape, generator)
    return torch.nn.functional.one_hot(index, d.event_shape[0]).to(d.probs)


def _multinomial(d: td.Multinomial, shape: Shape, generator: torch.Generator) -> Tensor:
    index = _categorical(d._categorical, (d.total_count, *shape), generator)
    return torch.nn.functional.one_hot(index, d.event_shape[0]).sum(dim=0).to(d.probs)


def _mixture(d: td.MixtureSameFamily, shape: Shape, generator: torch.Generator) -> Tensor:
    """One draw of every component, of which the chosen one is kept."""
    parts = draw(d.component_distribution, shape, generator).detach()
    axis = len(shape) + len(d.batch_shape)
    index = draw(d.mixture_distribution, shape, generator)
    index = index.reshape(*index.shape, *[1] * (parts.ndim - axis))
    index = index.expand(*parts.shape[:axis], 1, *parts.shape[axis + 1 :])
    return _with_implicit_gradient(d, parts.gather(axis, index).squeeze(axis))


def _with_implicit_gradient(d: td.MixtureSameFamily, x: Tensor) -> Tensor:
    """On the line, as of the quantile at the level of the draw."""
    if d.event_shape or not tracked(*taken_apart(d)[0]) or support_of(d).discrete:
        return x
    double, place = in_double(d), x.double()
    level = cdf(double, place).detach()
    found = implied(
        place, level, lambda t: cdf(double, t), lambda t: log_density(double, t), False
    )
    return found.to(x.dtype)


def _lkj(d: td.LKJCholesky, shape: Shape, generator: torch.Generator) -> Tensor:
    """Row by row: a direction, and how far from the diagonal it leads.

    Lewandowski, Kurowicka & Joe (2009), Generating random correlation matrices, J. Multivariate
    Analysis 100, section 3.2; torch's own draws have another law for matrices of three rows.
    """
    rows = torch.arange(1, d.dim, dtype=torch.float64, device=d.concentration.device)
    wide = (*shape, *d.batch_shape, d.dim - 1)
    below = _log_gamma_noise(0.5 * rows, wide, generator)
    left = d.concentration.double()[..., None] + 0.5 * (d.dim - 1 - rows)
    logit = below - _log_gamma_noise(left, wide, generator)
    direction = _noise((*wide, d.dim), logit, generator).tril()
    direction = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    lower = torch.sigmoid(logit).sqrt()[..., None] * direction
    first = torch.zeros_like(lower[..., :1, :])
    factor = torch.cat([first, lower], dim=-2)
    diagonal = torch.cat([torch.ones_like(logit[..., :1]), torch.sigmoid(-logit).sqrt()], dim=-1)
    return (factor + torch.diag_embed(diagonal)).to(d.concentration.dtype)


def _independent(d: td.Independent, shape: Shape, generator: torch.Generator) -> Tensor:
    return draw(d.base_dist, shape, generator)


# what is not here is drawn by its quantile, by its transforms, or by its own code
_RULES: dict[type[td.Distribution], Callable[..., Tensor]] = {
    td.Normal: _normal,
    td.LogNormal: _transformed,
    td.HalfNormal: _transformed,
    td.Gamma: _gamma,
    td.InverseGamma: _inverse_gamma,
    td.Beta: _beta,
    td.Dirichlet: _dirichlet,
    td.StudentT: _student,
    td.FisherSnedecor: _f,
    td.MultivariateNormal: _multivariate_normal,
    td.LowRankMultivariateNormal: _low_rank_normal,
    td.Poisson: _poisson,
    td.Bernoulli: _bernoulli,
    td.Binomial: _binomial,
    td.NegativeBinomial: _negative_binomial,
    td.Geometric: _geometric,
    td.Categorical: _categorical,
    td.OneHotCategorical: _one_hot,
    td.Multinomial: _multinomial,
    td.MixtureSameFamily: _mixture,
    td.Independent: _independent,
    td.LKJCholesky: _lkj,
}
