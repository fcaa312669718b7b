"""A posterior in words: the table of its moments, and the lines under it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probcalc._check import unknown_name
from probcalc._table import text_table
from probcalc.integration.tails import khat_limit
from probcalc.result import Estimate, format_with_error

if TYPE_CHECKING:
    from probcalc.inference.posterior import Posterior

_MAX_ROWS = 60
_ENDS = (0.05, 0.95)


def table(posterior: Posterior, sites: tuple[str, ...]) -> list[str]:
    """Mean, sd and 90 % interval of every entry, or of the sites named, with error bars.

    Raises:
        ValueError: For an unknown site, naming the nearest.
    """
    for site in sites:
        if site not in posterior.layout.shapes:
            raise ValueError(unknown_name("site", site, posterior.layout.shapes))
    mean, std = posterior._mean, posterior._std
    ends = [posterior._quantile(level) for level in _ENDS]
    names = posterior.names
    chosen = [i for i, n in enumerate(names) if not sites or n.split("[")[0] in sites]
    rows = [[names[i], *(_cell(e, i) for e in (mean, std, *ends))] for i in chosen]
    left_out = len(rows) - _MAX_ROWS
    if left_out > 0 and not sites:
        rows[_MAX_ROWS // 2 : -_MAX_ROWS // 2] = [[f"... {left_out} more", "", "", "", ""]]
    return [text_table(["", "mean", "sd", "5 %", "95 %"], rows)]


def verdict_lines(posterior: Posterior) -> list[str]:
    """ELBO, evidence, k̂, cost and verdict, one line each."""
    limit = khat_limit(posterior.log_ratios.numel())
    lines = [
        f"ELBO          {posterior.elbo._numbers()}",
        f"log evidence  {posterior.log_evidence._numbers()}",
        f"k-hat         {posterior.khat:.2f} (reliable below {limit:.2f})",
        f"evaluations   {posterior.num_evals:,}, {posterior.num_gradients:,} with gradient",
        f"method        {posterior.method}",
        f"verdict       {posterior.verdict.upper()}",
    ]
    return lines + [f"              {reason}" for reason in posterior.reasons]


def _cell(estimate: Estimate, i: int) -> str:
    return format_with_error(float(estimate.value[i]), float(estimate.error[i]))
