"""Fixed rules are exact for the polynomials that they should be exact for, and for no others."""

from __future__ import annotations

import pytest
import torch

from probcalc.integration.rules import gauss_kronrod

CPU = torch.device("cpu")


@pytest.mark.parametrize("degree", range(26))
def test_degrees(degree: int):
    """Kronrod's 15 points: 22 (and odd 23 by symmetry); Gauss's 7: 13."""
    rule = gauss_kronrod(CPU, 8)
    x = 2 * rule.nodes[:15] - 1
    kronrod, difference = rule.weights @ x**degree
    exact = 0.0 if degree % 2 else 1 / (degree + 1)
    assert (abs(kronrod - exact) < 1e-15) == (degree <= 23 or degree % 2 == 1)
    assert (abs(difference) < 1e-15) == (degree <= 13 or degree % 2 == 1)


@pytest.mark.parametrize("num_checks", [6, 64, 1024])
def test_checks_lie_between_nodes_and_are_predicted(num_checks: int):
    rule = gauss_kronrod(CPU, num_checks)
    nodes, checks = rule.nodes[:15], rule.nodes[15:]
    assert len(checks) == num_checks + 2
    assert ((rule.nodes > 0) & (rule.nodes < 1)).all()
    assert (checks[:, None] - nodes).abs().min() > 0
    gaps = checks.sort().values.diff()
    assert gaps.max() < 2.1 / num_checks
    for degree in range(15):
        torch.testing.assert_close(rule.interpolation @ nodes**degree, checks**degree)
