"""Time to a converged posterior on small models, and the error that it has.

Ours: a Pyro model in, moments with error bars out. Peers: mean-field SVI for a fixed number of
Adam steps, which nobody has shown to have converged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch

import probcalc as pc
from benchmarks import numpyro_svi, pyro_svi
from benchmarks.cold import in_fresh_process
from benchmarks.harness import Case, Contestant, Scores
from benchmarks.problems import PROBLEMS, Problem, errors

NOTES = (
    "Errors are against reference draws, in reference sds: |mean - reference mean| / reference "
    "sd, and |sd / reference sd - 1|, over all reported parameters; the references' own noise "
    "stands in `benchmarks/references/`.",
    "Gradient evaluations count every draw; `batched calls` counts the calls that they took, "
    "chunks included. Ours evaluates the density without its gradient as well, to weigh draws: "
    "`densities only`.",
    f"SVI: Adam with learning rate {pyro_svi.LEARNING_RATE}, one particle, float32, moments "
    f"from {pyro_svi.NUM_DRAWS:,} draws of the fitted guide (not timed). A mean-field guide "
    "cannot reach the exact posterior, so its error does not vanish with more steps: the row of "
    "10,000 steps shows what is left.",
    "`cores` is processor time over wall time. Everyone computes in one thread; NumPyro's "
    "compiler, which `svi.run` starts at every call, keeps threads of its own. Below 1, other "
    "work on the machine took the processor.",
    "`cold` is the first call in a fresh process after its imports, which take the seconds in "
    "the column `imports`.",
)


def cases(device: str) -> list[Case]:
    """One case a problem."""
    return [_case(problem(), device) for problem in PROBLEMS.values()]


def _case(problem: Problem, device: str) -> Case:
    data = tuple(t.to(device) for t in problem.data)
    target = pc.Target.from_pyro(problem.model, *data)
    return Case(
        problem.name,
        [
            Contestant(
                "probcalc: Target.from_pyro + pc.fit",
                lambda seed: _fit(pc.Target.from_pyro(problem.model, *data), seed),
                state="warm: same model and data as in an earlier call",
                score=partial(_scored, problem, target),
            ),
            Contestant(
                "probcalc, the same with a new model function",
                lambda seed: _fit(_traced_anew(problem, data), seed),
                state="process warm, traced anew",
            ),
            Contestant(
                "probcalc, Target.from_pyro alone, new function",
                lambda seed: _traced_anew(problem, data),
                state="process warm, traced anew",
            ),
            Contestant("probcalc, pc.fit alone", partial(_fit, target)),
            Contestant(
                "probcalc, first call in a fresh process",
                lambda seed: in_fresh_process(problem.name, device),
                state="cold",
                score=lambda record: {"imports (s)": record["imports"]},
                warmups=0,
            ),
            pyro_svi.contestant(problem, device),
            *numpyro_svi.contestants(problem),
        ],
    )


@dataclass(frozen=True, eq=False)
class _Fitted:
    posterior: pc.Posterior
    seed: int


def _traced_anew(problem: Problem, data: tuple[torch.Tensor, ...]) -> pc.Target:
    return pc.Target.from_pyro(lambda *args: problem.model(*args), *data)  # nothing to remember


def _fit(target: pc.Target, seed: int) -> _Fitted:
    return _Fitted(pc.fit(target, generator=torch.Generator().manual_seed(seed)), seed)


def _scored(problem: Problem, target: pc.Target, fitted: _Fitted) -> Scores:
    counts = _Counts()
    _fit(counts.of(target), fitted.seed)  # the same fit again, its evaluations counted
    mean, std = fitted.posterior.mean, fitted.posterior.std
    return {
        "gradient evaluations": counts.gradients,
        "densities only": counts.values,
        "batched calls": counts.calls,
        **errors(
            problem,
            torch.cat([mean[site].value.flatten() for site in problem.sites]),
            torch.cat([std[site].value.flatten() for site in problem.sites]),
        ),
    }


class _Counts:
    """Rows that a target evaluated, and the calls that it took."""

    def __init__(self) -> None:
        self.gradients = self.values = self.calls = 0

    def of(self, target: pc.Target) -> pc.Target:
        """The same target, counting."""
        rows = target.rows

        def value(z: torch.Tensor) -> torch.Tensor:
            self.values += len(z)
            self.calls += 1
            return rows.value(z)

        def value_and_grad(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            self.gradients += len(z)
            self.calls += 1
            return rows.value_and_grad(z)

        return replace(target, rows=replace(rows, value=value, value_and_grad=value_and_grad))
