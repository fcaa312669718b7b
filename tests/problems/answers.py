"""How the divergences of all pairs of families are known: ``python tests/problems/answers.py``."""

from __future__ import annotations

import math
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from problems.pairs import FAMILIES
from torch import distributions as td

from probcalc import EstimateWarning, kl

TABLE = Path(__file__).parents[2] / "docs" / "kl_pairs.md"
_KINDS = {
    "closed form": "formula",
    "adaptive Gauss–Kronrod": "quadrature",
    "trapezoidal rule": "quadrature",
    "enumeration": "sum",
    "adaptive cubature": "quadrature",
    "sparse grid": "sparse grid",
}
_COLUMNS = (
    "formula",
    "infinite",
    "sum",
    "quadrature",
    "sparse grid",
    "draws",
    "flagged",
    "refused",
    "torch",
)
_HEAD = f"""# How the divergence of each pair of families is known

`pc.kl(p, q)` of the {len(FAMILIES)} families of `torch.distributions`, each as p against every q:
by formula (or since they are one), proved infinite (with the reason in its diagnostics), by sums
and integrals whose errors are known, or by draws, with their error bars. `flagged` counts values
that should not be believed; `refused` pairs whose draws differ in shape. `torch` counts
what `torch.distributions.kl_divergence` answers, rightly or not.

"""


def answers(name: str, generator: torch.Generator) -> dict[str, str]:
    """How KL(p‖q) is known, of the family of that name and every other."""
    return {other: _answer(FAMILIES[name], q, generator) for other, q in FAMILIES.items()}


def row(name: str, found: dict[str, str]) -> str:
    """Of the table, with counts."""
    counts = Counter(found.values())
    counts["torch"] = sum(_in_torch(FAMILIES[name], FAMILIES[other]) for other in found)
    return _line(name, counts)


def _line(name: str, counts: Counter[str]) -> str:
    return f"| {name} | " + " | ".join(str(counts[c] or "") for c in _COLUMNS) + " |"


def _answer(p: td.Distribution, q: td.Distribution, generator: torch.Generator) -> str:
    if p.event_shape != q.event_shape:
        with pytest.raises(ValueError, match="draws of one shape"):
            kl(p, q)
        return "refused"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EstimateWarning)
        found = kl(p, q, generator=generator)
    value = float(found.value)
    assert value >= 0, (p, q)
    if not found.ok:
        return "flagged"
    if value == math.inf:
        assert found.diagnostics["reason"], (p, q)
        return "infinite"
    if found.method == "proof":
        assert value == 0, (p, q)
        return "formula"
    return _KINDS[found.method] if found.method in _KINDS else "draws"


def _in_torch(p: td.Distribution, q: td.Distribution) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            td.kl_divergence(p, q)
        except Exception:
            return False
    return True


def _table() -> str:
    """All rows, and their sum."""
    generator, total, rows = torch.Generator().manual_seed(0), Counter[str](), []
    for name in FAMILIES:
        found = answers(name, generator)
        rows.append(row(name, found))
        total.update(found.values())
        total["torch"] += sum(_in_torch(FAMILIES[name], FAMILIES[other]) for other in found)
    head = ["| p | " + " | ".join(_COLUMNS) + " |", "| --- |" + " ---: |" * len(_COLUMNS)]
    return _HEAD + "\n".join([*head, *rows, _line("**all**", total)]) + "\n"


if __name__ == "__main__":
    TABLE.write_text(_table())
