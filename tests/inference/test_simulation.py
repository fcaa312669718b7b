"""Draws of priors and of data: their laws, by `vmap` or not, and what is refused."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import assert_mean_is
from problems import linear_model

from probcalc import Target
from probcalc.inference.predictive import predict
from probcalc.inference.simulation import over_draws

CPU = torch.device("cpu")
BIAS = 0.1
NUM = 60_000  # for the skewness of squares and gamma variables

# name -> distribution of one entry, of Pyro; its mean is the oracle
FAMILIES = {
    "normal": lambda: dist.Normal(1.0, 2.0),
    "poisson": lambda: dist.Poisson(3.0),
    "bernoulli": lambda: dist.Bernoulli(0.3),
    "gamma": lambda: dist.Gamma(2.0, 3.0),
    "beta": lambda: dist.Beta(2.0, 3.0),
    "dirichlet": lambda: dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])),
    "binomial": lambda: dist.Binomial(10, 0.4),
    "negative binomial": lambda: dist.NegativeBinomial(5, torch.tensor(0.4)),
    "student": lambda: dist.StudentT(20.0, 1.0, 2.0),
    "exponential": lambda: dist.Exponential(2.0),
    "multivariate normal": lambda: dist.MultivariateNormal(
        torch.tensor([1.0, -1.0]), torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    ),
    "masked": lambda: dist.Normal(1.0, 2.0).mask(torch.tensor(True)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_observed_sites_are_drawn_from_their_distribution(name: str, seed: int):
    family = FAMILIES[name]

    def model(y: torch.Tensor) -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", family(), obs=y)

    example = family().sample().double()
    simulator = Target.from_pyro(model, example).model.simulator
    values = {"mu": torch.zeros(NUM).double()}
    made, _ = simulator.simulate(values, seed)
    assert made["y"].shape == (NUM, *example.shape)
    assert_mean_is(made["y"], family().mean.double(), bias=BIAS)


def test_prior_of_a_pyro_model_keeps_dependence_between_sites(seed: int):
    def model(y: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(2.0, 1.0))
        theta = pyro.sample("theta", dist.Normal(mu, 0.5))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    simulator = Target.from_pyro(model, torch.tensor(0.0)).model.simulator
    values = simulator.prior(NUM, seed)
    assert set(values) == {"mu", "theta"}
    assert_mean_is(values["theta"], 2.0, bias=BIAS)
    assert_mean_is((values["theta"] - values["mu"]).square(), 0.25, bias=BIAS)
    assert_mean_is((values["mu"] - 2) * (values["theta"] - values["mu"]), 0.0, bias=BIAS)


def test_data_without_a_plate_keep_their_shape(seed: int):
    """Eight outcomes of one scalar distribution: eight are drawn, and they differ."""

    def model(y: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    simulator = Target.from_pyro(model, torch.zeros(8)).model.simulator
    made, _ = simulator.simulate({"mu": torch.zeros(3).double()}, seed)
    assert made["y"].shape == (3, 8)
    assert len(made["y"].unique()) == 24


def test_sites_that_the_density_sums_out_are_drawn(seed: int):
    def model(y: torch.Tensor) -> None:
        gap = pyro.sample("gap", dist.Gamma(4.0, 1.0))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.25))
            pyro.sample("y", dist.Normal(z * gap, 0.1), obs=y)

    simulator = Target.from_pyro(model, torch.zeros(4)).model.simulator
    made, _ = simulator.simulate({"gap": torch.full((NUM,), 5.0).double()}, seed)
    assert_mean_is((made["y"][:, 0] > 2.5).double(), 0.25, bias=BIAS)


def test_a_simulator_that_vmap_refuses_is_called_draw_by_draw(seed: int):
    def one(values: dict, generator: torch.Generator) -> torch.Tensor:
        shift = 10.0 if values["x"].item() > 0 else -10.0  # leaves torch
        return shift + torch.randn(3, generator=generator)

    x = torch.tensor([1.0, -1.0, 2.0])
    made = over_draws(one, {"x": x}, seed=seed, device=CPU)
    assert made.shape == (3, 3)
    assert torch.equal((made > 0).all(dim=1), x > 0)
    assert len(made.unique()) == 9
    assert torch.equal(made, over_draws(one, {"x": x}, seed=seed, device=CPU))


def test_torchs_own_samplers_leave_its_generator_alone(seed: int):
    before = torch.get_rng_state()
    one = lambda values, generator: torch.distributions.Poisson(values["x"]).sample()  # noqa: E731
    made = over_draws(one, {"x": torch.full((50,), 5.0)}, seed=seed, device=CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(made.unique()) > 3


def test_mistakes_of_the_users_code_are_seen_as_raised(seed: int):
    def one(values: dict, generator: torch.Generator) -> torch.Tensor:
        raise KeyError("my mistake")

    with pytest.raises(KeyError, match="my mistake"):
        over_draws(one, {"x": torch.zeros(2)}, seed=seed, device=CPU)


X, Y = linear_model.data()


def made_by(**changed: object) -> Target:
    settings = {
        "log_likelihood": linear_model.log_likelihood,
        "data": (X, Y),
        "simulate": lambda v, g: (X, Y),
        "prior": linear_model.prior,
    }
    return Target.from_function(linear_model.log_prior, {"b": (2,)}, **settings | changed)


REFUSED = {
    "no simulate": ({"simulate": None}, "simulating data needs `simulate=`"),
    "other structure": ({"simulate": lambda v, g: Y}, "the same structure as `data`"),
    "other shape": ({"simulate": lambda v, g: (X, Y[:3])}, r"got \[\(20, 2\), \(3,\)\]"),
    "prior of other shape": (
        {"prior": lambda n, g: {"b": torch.zeros(n)}},
        r"must return 'b' of shape \(4096, 2\), got \(4096,\)",
    ),
    "prior of other name": ({"prior": lambda n, g: {"c": torch.zeros(n)}}, "got nothing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_make_data_is_refused(case: str, generator: torch.Generator):
    changed, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        predict(made_by(**changed), generator=generator)


def test_a_target_without_data_makes_none(generator: torch.Generator):
    with pytest.raises(ValueError, match="does not know its data"):
        predict(Target.from_log_density(lambda x: -x.square().sum(), 2), generator=generator)


def test_new_data_are_arguments_of_a_pyro_model(seed: int, generator: torch.Generator):
    target = Target.from_pyro(linear_model.model, X, Y)
    values = {"b": torch.zeros(5, 2).double()}
    made, derived = target.model.simulator.simulate(values, seed, {"X": X[:3], "y": None})
    assert made["y"].shape == derived["mu"].shape == (5, 3)
    again, _ = target.model.simulator.simulate(values, seed, (X[:3],))
    assert torch.equal(made["y"], again["y"])
    with pytest.raises(ValueError, match=r"names \['Z'\], which the model does not take"):
        target.model.simulator.simulate(values, seed, {"Z": X})
    with pytest.raises(ValueError, match="must be a tuple .* or a dict .*, got Tensor"):
        target.model.simulator.simulate(values, seed, X)
    with pytest.raises(ValueError, match="`new_data` are arguments of a Pyro model"):
        predict(linear_model.target(X, Y), new_data=(X,), generator=generator)


def test_new_groups_need_draws_of_their_own(seed: int):
    def model(group: torch.Tensor, y: torch.Tensor | None) -> None:
        with pyro.plate("groups", int(group.max()) + 1):
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(group)):
            pyro.sample("y", dist.Normal(theta[group], 1.0), obs=y)

    group = torch.tensor([0, 0, 1])
    simulator = Target.from_pyro(model, group, torch.zeros(3)).model.simulator
    values = {"theta": torch.zeros(4, 2).double()}
    with pytest.raises(ValueError, match=r"site 'theta' has shape \(3,\), .* new groups"):
        simulator.simulate(values, seed, {"group": torch.tensor([0, 1, 2]), "y": None})
