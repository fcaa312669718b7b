"""Logistic regression on 30 correlated predictors: 31 coefficients right without tuning.

Is a tumour benign? 569 fine-needle aspirates with 30 measurements each, standardised: Street,
Wolberg & Mangasarian (1993), Nuclear feature extraction for breast tumor diagnosis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import scale

import probcalc as pc
from probcalc.experiment import Reference, Row, require_positive

PAIR = ("beta[10]", "beta[13]")
REFERENCE = Reference(
    "Pyro's NUTS, 10 chains of 2500, at least 11,173 effective draws",
    {
        "intercept": Row(-0.4561, 0.0037, 0.7077, 0.0045),
        "beta[0]": Row(0.0324, 0.0110, 2.1484, 0.0133),
        "beta[1]": Row(-0.0410, 0.0051, 0.9623, 0.0061),
        "beta[2]": Row(0.0179, 0.0112, 2.1828, 0.0135),
        "beta[3]": Row(-0.2854, 0.0113, 2.1909, 0.0147),
        "beta[4]": Row(-0.5892, 0.0059, 1.0947, 0.0067),
        "beta[5]": Row(2.1154, 0.0089, 1.7111, 0.0108),
        "beta[6]": Row(-2.0943, 0.0094, 1.7694, 0.0110),
        "beta[7]": Row(-2.0815, 0.0094, 1.7594, 0.0115),
        "beta[8]": Row(0.4494, 0.0045, 0.8073, 0.0052),
        "beta[9]": Row(0.3131, 0.0069, 1.2680, 0.0078),
        "beta[10]": Row(-2.9771, 0.0094, 1.7641, 0.0112),
        "beta[11]": Row(0.9699, 0.0045, 0.8396, 0.0053),
        "beta[12]": Row(-0.6031, 0.0087, 1.6569, 0.0103),
        "beta[13]": Row(-2.9010, 0.0115, 2.2171, 0.0142),
        "beta[14]": Row(-0.9380, 0.0048, 0.7761, 0.0046),
        "beta[15]": Row(0.5546, 0.0069, 1.3070, 0.0078),
        "beta[16]": Row(1.2332, 0.0071, 1.2213, 0.0078),
        "beta[17]": Row(-1.0878, 0.0070, 1.3042, 0.0080),
        "beta[18]": Row(0.5664, 0.0051, 0.9221, 0.0056),
        "beta[19]": Row(2.0581, 0.0080, 1.4271, 0.0084),
        "beta[20]": Row(-2.2911, 0.0114, 2.1955, 0.0143),
        "beta[21]": Row(-3.1193, 0.0068, 1.2455, 0.0078),
        "beta[22]": Row(-1.5012, 0.0113, 2.1864, 0.0138),
        "beta[23]": Row(-2.4596, 0.0116, 2.2822, 0.0150),
        "beta[24]": Row(-0.4980, 0.0061, 1.0962, 0.0068),
        "beta[25]": Row(0.5496, 0.0087, 1.6961, 0.0104),
        "beta[26]": Row(-1.8697, 0.0086, 1.5927, 0.0100),
        "beta[27]": Row(-1.5513, 0.0087, 1.6597, 0.0106),
        "beta[28]": Row(-1.7990, 0.0054, 0.9842, 0.0060),
        "beta[29]": Row(-1.5425, 0.0078, 1.4460, 0.0091),
    },
)


@dataclass(frozen=True)
class Config:
    """The prior.

    Args:
        prior_scale: Standard deviation of every coefficient's normal prior, in log odds for one
            standard deviation of the predictor.
    """

    prior_scale: float = 2.5

    def __post_init__(self) -> None:
        """Check the scale."""
        require_positive(self, "prior_scale")


def model(config: Config, x: torch.Tensor, benign: torch.Tensor) -> None:
    """Log odds of a benign tumour = intercept + x beta."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, config.prior_scale))
    prior = dist.Normal(0.0, config.prior_scale).expand([x.shape[1]]).to_event(1)
    beta = pyro.sample("beta", prior)
    with pyro.plate("tumour", len(benign)):
        pyro.sample("benign", dist.Bernoulli(logits=intercept + x @ beta), obs=benign)


def target(config: Config) -> pc.Target:
    """The posterior of the coefficients."""
    x, benign = load_breast_cancer(return_X_y=True)
    data = torch.from_numpy(scale(x)), torch.from_numpy(benign).double()
    return pc.Target.from_pyro(model, config, *data)


def run(config: Config, *, dtype: torch.dtype = torch.float64, **settings: Any) -> pc.Posterior:
    """Fit it."""
    return pc.fit(target(config).to(dtype=dtype), **settings)
