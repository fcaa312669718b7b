from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

import probcalc as pc
from probcalc import Target

F64 = torch.float64


def t(*values: float) -> Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=F64)


Y = t(28.0, 8.0, -3.0, 7.0)
SIGMA = t(15.0, 10.0, 16.0, 11.0)


def schools(sigma: Tensor, y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def correlated(sigma: Tensor, y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones(2)).to_event(1))
    factor = pyro.sample("factor", dist.LKJCholesky(2, 2.0))
    with pyro.plate("rows", 2):
        pyro.sample(
            "y",
            dist.MultivariateNormal(torch.zeros(2), scale_tril=scale[:, None] * factor),
            obs=y.reshape(2, 2) / 10,
        )


def scaled(sigma: Tensor, y: Tensor) -> None:
    with poutine.scale(scale=3.0):
        m = pyro.sample("m", dist.Normal(1.0, 2.0))
    with poutine.scale(scale=0.5), pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(m, sigma), obs=y)


def nested(sigma: Tensor, y: Tensor) -> None:
    with pyro.plate("columns", 2, dim=-1), pyro.plate("rows", 3, dim=-2):
        w = pyro.sample("w", dist.Gamma(2.0, 1.0))
    pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=t(4.0))


def masked(sigma: Tensor, y: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)), poutine.mask(mask=y > 0):
        pyro.sample("y", dist.Normal(m, sigma), obs=y)


def dependent_support(sigma: Tensor, y: Tensor) -> None:
    upper = pyro.sample("upper", dist.Gamma(3.0, 1.0))
    inside = pyro.sample("inside", dist.Uniform(torch.zeros(()), upper))
    pyro.sample("y", dist.Normal(inside, 1.0), obs=t(1.0))


def ordered(sigma: Tensor, y: Tensor) -> None:
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    pyro.factor("penalty", -((p[0] - 0.2) ** 2))


# models whose density Pyro itself can give
MODELS = {
    model.__name__: model
    for model in (schools, correlated, scaled, nested, masked, dependent_support, ordered)
}


def joint(model, args: tuple, values: dict[str, Tensor]) -> Tensor:
    """Pyro's own joint density of constrained values."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    try:
        return poutine.trace(poutine.condition(model, values)).get_trace(*args).log_prob_sum()
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize("name", MODELS)
def test_density_is_pyros(name: str):
    """The trace, batched, is Pyro's joint density plus the Jacobian, row by row."""
    target = Target.from_pyro(MODELS[name], SIGMA, Y)
    assert target.is_traced, target.notes
    z = torch.randn(5, target.dim, generator=torch.Generator().manual_seed(1), dtype=F64)
    values, log_det = target.constrain(z), target.log_abs_det_jacobian(z)
    expected = [
        joint(MODELS[name], (SIGMA, Y), {k: v[i] for k, v in values.items()}) + log_det[i]
        for i in range(len(z))
    ]
    torch.testing.assert_close(target.log_density(z), torch.stack(expected))


@pytest.mark.parametrize("name", ["schools", "scaled", "nested", "masked"])
def test_density_is_that_of_pyros_samplers(name: str):
    """Two routes: Pyro's own potential function on the unconstrained scale, up to its sign."""
    target = Target.from_pyro(MODELS[name], SIGMA, Y)
    torch.set_default_dtype(F64)
    try:
        _, potential, transforms, _ = initialize_model(MODELS[name], (SIGMA, Y))
    finally:
        torch.set_default_dtype(torch.float32)
    z = torch.randn(3, target.dim, generator=torch.Generator().manual_seed(2), dtype=F64)
    values = target.constrain(z)
    for i in range(len(z)):
        free = {k: transforms[k](v[i]) if k in transforms else v[i] for k, v in values.items()}
        torch.testing.assert_close(target.log_density(z[i]), -potential(free))


def test_deterministic_sites_are_reported():
    def model() -> None:
        a = pyro.sample("a", dist.LogNormal(0.0, 0.1))
        pyro.deterministic("twice", 2 * a)
        pyro.deterministic("both", torch.stack([a, a**2]))

    target = Target.from_pyro(model)
    assert target.names == ("a", "twice", "both[0]", "both[1]")
    assert target.dim == 1
    values = target.constrain(t(0.3)[None])
    torch.testing.assert_close(values["both"], torch.stack([t(0.3).exp(), t(0.6).exp()]))


def test_finite_discrete_sites_are_summed_out():
    """A two-component mixture with an indicator is the mixture with its logsumexp."""
    y = t(-2.0, 0.1, 2.5)

    def model(y: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(torch.where(z > 0, m, -m), 1.0), obs=y)

    target = Target.from_pyro(model, y)
    assert target.notes == ("summed out: z",)
    points = torch.randn(4, 1, dtype=F64)
    for point, value in zip(points, target.log_density(points), strict=True):
        parts = torch.stack(
            [
                torch.tensor(0.3, dtype=F64).log() + dist.Normal(point, 1.0).log_prob(y),
                torch.tensor(0.7, dtype=F64).log() + dist.Normal(-point, 1.0).log_prob(y),
            ]
        )
        expected = parts.logsumexp(0).sum() + dist.Normal(0.0, 2.0).log_prob(point)[0]
        torch.testing.assert_close(value, expected)


def test_hidden_markov_chain_is_summed_out():
    y = t(0.3, 2.1, 1.7)

    def model(y: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        state = 0
        for i in pyro.markov(range(len(y))):
            probs = torch.tensor([[0.8, 0.2], [0.3, 0.7]])[state]
            state = pyro.sample(f"s{i}", dist.Categorical(probs))
            pyro.sample(f"y{i}", dist.Normal(m * state, 1.0), obs=y[i])

    target = Target.from_pyro(model, y)
    point = t(1.3)
    P = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=F64)
    alpha = P[0]
    for value in y:
        emission = dist.Normal(point * t(0.0, 1.0), 1.0).log_prob(value).exp()
        alpha = (alpha * emission) @ P
    expected = alpha.sum().log() + dist.Normal(t(0.0), t(1.0)).log_prob(point)
    # the constants of the model are float32
    torch.testing.assert_close(target.log_density(point[None]), expected, rtol=1e-6, atol=1e-6)


def test_pyros_own_settings_are_left_alone():
    """Validation, default dtype, parameter store and random state are as before."""
    state = torch.random.get_rng_state()
    pyro.get_param_store().setdefault("mine", torch.ones(2))
    try:
        Target.from_pyro(schools, SIGMA, Y)
        assert list(pyro.get_param_store().keys()) == ["mine"]
    finally:
        pyro.clear_param_store()
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.get_default_dtype() == torch.float32


def test_the_same_model_is_traced_once_but_never_stale():
    """A remembered trace is used for equal data only, and not after a global has changed."""
    knob = {"scale": 1.0}

    def model(y: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, knob["scale"]))
        pyro.sample("y", dist.Normal(m, 1.0).expand([len(y)]).to_event(1), obs=y)

    first = Target.from_pyro(model, Y)
    assert Target.from_pyro(model, Y.clone()).rows is first.rows
    other = Target.from_pyro(model, Y + 1)
    assert other.rows is not first.rows
    knob["scale"] = 2.0
    changed = Target.from_pyro(model, Y)
    assert changed.rows is not first.rows
    z = t(0.7)[None]
    difference = dist.Normal(t(0.0), 2.0).log_prob(z) - dist.Normal(t(0.0), 1.0).log_prob(z)
    torch.testing.assert_close(changed.log_density(z) - first.log_density(z), difference[0])


def test_keyword_arguments_reach_the_model():
    def model(*, y: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    p = pc.fit(Target.from_pyro(model, y=t(2.0)), generator=torch.Generator().manual_seed(0))
    assert float(p.mean["m"]) == pytest.approx(1.0, abs=1e-6)


def no_latent(y: Tensor) -> None:
    pyro.sample("y", dist.Normal(0.0, 1.0).expand([4]).to_event(1), obs=y)


def learnable(y: Tensor) -> None:
    scale = pyro.param("scale", torch.ones(()))
    pyro.sample("m", dist.Normal(0.0, scale))


def own_batch(y: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 4, subsample_size=2):
        pyro.sample("y", dist.Normal(m, 1.0), obs=y[:2])


def own_rows(y: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 4, subsample=torch.randperm(4)[:2]) as i:
        pyro.sample("y", dist.Normal(m, 1.0), obs=y[i])


def countable(y: Tensor) -> None:
    n = pyro.sample("n", dist.Poisson(3.0))
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(m, 1.0 + n), obs=y[0])


def empty(y: Tensor) -> None:
    pass


REFUSED = {
    "all sites observed": (no_latent, r"no continuous latent sites .*'y'.*all sites observed"),
    "no site at all": (empty, r"no continuous latent sites \(its sample sites: none\)"),
    "learnable parameter": (learnable, r"site 'scale' is a learnable `pyro.param`; give it a pri"),
    "a batch": (own_batch, r"plate 'rows' draws its own mini-batch \(2 of 4 rows\).*`obs=y\[i\]`"),
    "rows": (own_rows, r"plate 'rows' draws its own mini-batch \(2 of 4 rows\)"),
    "infinitely many values": (countable, r"site 'n' \(Poisson\) is discrete .* truncate it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_without_a_density_are_refused(name: str):
    model, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        Target.from_pyro(model, Y)
    pyro.clear_param_store()


def test_nan_in_the_arguments_is_refused_with_row_and_column():
    X = torch.zeros(3, 2)
    X[2, 1] = float("nan")
    with pytest.raises(ValueError, match=r"`argument 1 of the model` .*nan at row 2, column 1"):
        Target.from_pyro(schools, X, Y)
    with pytest.raises(ValueError, match=r"argument 2 of the model.*nan at row 2, column 1"):
        Target.from_pyro(schools, SIGMA, X.numpy())
    with pytest.raises(ValueError, match=r"keyword arguments of the model\['y'\].*row 2"):
        Target.from_pyro(schools, sigma=SIGMA, y=X)


def test_nan_inside_the_model_is_refused_with_its_site():
    def model() -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 3):
            pyro.sample("weight", dist.Normal(m, 1.0), obs=t(1.0, float("nan"), 2.0))

    with pytest.raises(ValueError, match=r"site 'weight'.* nan at row 1"):
        Target.from_pyro(model)


def test_mistakes_in_the_model_keep_pyros_words():
    def model() -> None:
        pyro.sample("m", dist.Normal(0.0, -1.0))

    with pytest.raises(ValueError, match=r"site 'm' has log density nan .* scale"):
        Target.from_pyro(model)
