"""Policy gradients on the estimators of `integration`, through the loop of `training`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Bandit": "probcalc.policy.worlds",
    "CartPole": "probcalc.policy.worlds",
    "Clipped": "probcalc.policy.updates",
    "Critic": "probcalc.policy.weights",
    "EnvironmentFault": "probcalc.policy.environments",
    "Evaluation": "probcalc.policy.reinforce",
    "GAE": "probcalc.policy.weights",
    "Gridworld": "probcalc.policy.worlds",
    "Gymnasium": "probcalc.policy.gymnasium_envs",
    "NaturalGradient": "probcalc.policy.natural",
    "PlainGradient": "probcalc.policy.updates",
    "PolicyFit": "probcalc.policy.fitted",
    "Reinforce": "probcalc.policy.reinforce",
    "RewardToGo": "probcalc.policy.weights",
    "Tabular": "probcalc.policy.tabular",
    "TimeMean": "probcalc.policy.weights",
    "WholeReturn": "probcalc.policy.weights",
    "World": "probcalc.policy.worlds",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'probcalc.policy' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
