"""Guides as JSON and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from probcalc.inference.guides import (
    GUIDES,
    Amortised,
    Flow,
    GaussianMixture,
    LowRank,
    Structured,
    StudentT,
)
from probcalc.inference.guides.saved import guide_of, record_of

GUIDES_WITH_SETTINGS = [
    *(family() for name, family in GUIDES.items() if name != "structured"),
    Structured(((0, 1), (1, 4)), (0,), (1,)),
    LowRank(3, init_log_scale=-2.0),
    GaussianMixture(4, weighted=True),
    StudentT(6),
    Flow(2, (5, 6), bins=None, full_rank=False),
]


@pytest.mark.parametrize("guide", GUIDES_WITH_SETTINGS, ids=repr)
def test_a_record_in_json_gives_the_guide_back(guide: Any):
    text = json.dumps(record_of(guide, GUIDES))
    again = guide_of(json.loads(text), GUIDES)
    assert again == guide
    assert hash(again) == hash(guide)


def test_what_cannot_be_saved_says_so():
    guide = Amortised(nn.Linear(1, 2), torch.zeros(3, 1), 1)
    with pytest.raises(ValueError, match="Amortised cannot be saved by its settings; families"):
        record_of(guide, GUIDES)
    with pytest.raises(ValueError, match="unknown guide 'spline'; known guides: .*delta, "):
        guide_of({"guide": "spline", "settings": {}}, GUIDES)
