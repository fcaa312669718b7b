"""Diffusion models: what diffuses, how noise grows, what the denoiser predicts, and sampling."""

from __future__ import annotations

from probcalc.models.diffusion.data import Levels, Real
from probcalc.models.diffusion.denoisers import (
    Data,
    Epsilon,
    LevelLogits,
    ResidualPerceptron,
    Velocity,
)
from probcalc.models.diffusion.fitted import DiffusionFit
from probcalc.models.diffusion.model import Diffusion
from probcalc.models.diffusion.sampling import Ancestral, Deterministic, Midpoint
from probcalc.models.diffusion.schedules import LearnedSchedule, LinearSchedule

__all__ = [
    "Ancestral",
    "Data",
    "Deterministic",
    "Diffusion",
    "DiffusionFit",
    "Epsilon",
    "LearnedSchedule",
    "LevelLogits",
    "Levels",
    "LinearSchedule",
    "Midpoint",
    "Real",
    "ResidualPerceptron",
    "Velocity",
]
