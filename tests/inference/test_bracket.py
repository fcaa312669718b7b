"""What a bracket says of itself."""

from __future__ import annotations

import torch
from laws import generator

from probcalc import Estimate, Target, laplace
from probcalc.inference.bracket import Bracket
from probcalc.status import Status


def bracket(status: Status = Status.OK, is_bound: bool = True) -> Bracket:
    target = Target.from_log_density(lambda x: -0.5 * x.square().sum(), 1)
    number = lambda v, e: Estimate(
        torch.tensor(v, dtype=torch.float64), torch.tensor(e, dtype=torch.float64)
    )
    return Bracket(
        lower=number(-2.0, 0.5),
        upper=number(-1.0, 0.25),
        estimate=number(-1.5, 0.1),
        bounds={},
        symmetric_kl=number(1.0, 0.1),
        upper_is_bound=is_bound,
        confidence=0.99,
        status=status,
        reasons=("because",) if status else (),
        notes=("a note",),
        num_evals=1234,
        posterior=laplace(target, generator=generator(0)),
    )


def test_the_ends_include_their_errors():
    b = bracket()
    assert b.interval == (-2.5, -0.75)
    assert b.contains(-2.5)
    assert b.contains(-0.75)
    assert not b.contains(-2.51)
    assert not b.contains(-0.74)
    assert float(b.gap.value) == 1.0
    assert float(b.gap.error) == 0.75


def test_words_say_what_the_upper_end_is_and_what_is_wrong():
    assert "[-2.5, -0.75] (99%; the upper end is a bound)" in repr(bracket())
    assert "verdict: ok" in repr(bracket())
    assert "a note" in repr(bracket())
    text = repr(bracket(Status.NOT_CONVERGED, is_bound=False))
    assert "the upper end is an estimate of a bound" in text
    assert "FLAGGED: not converged" in text
    assert "because" in text
    assert bracket().ok
    assert not bracket(Status.NOT_CONVERGED).ok
