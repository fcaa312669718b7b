"""What the studies of policies share: seeds, curves, findings, and frames of an episode."""

from __future__ import annotations

import time
from typing import Any

import torch

from probcalc.policy import Evaluation, PolicyFit, Reinforce
from probcalc.reporting.policy_plots import plot_frames, plot_learning
from probcalc.reporting.study import Finding, Study, at_least, at_most

_FRAMES = 5
LEEWAY = 128  # steps of a copy: the last rollout is made whole


def studied(
    trainer: Reinforce,
    evaluation: Evaluation,
    *,
    seeds: int,
    steps: int,
    wanted: float,
    share: float,
    episodes: int,
    generator: torch.Generator | None,
) -> Study:
    """Train with every seed, evaluate apart, and count who reached what is wanted."""
    fits, times, found = [], [], []
    for _ in range(seeds):
        begun = time.perf_counter()
        fits.append(trainer.train(steps, evaluation=evaluation, generator=generator))
        times.append(time.perf_counter() - begun)
        found.append(fits[-1].evaluate(episodes, generator=generator))
    reached = sum(float(e.value) >= wanted for e in found)
    used = [fit.diagnostics["steps"] for fit in fits]
    worst = min(found, key=lambda e: float(e.value))
    failures = sorted({str(f.name) for fit in fits for f in fit.failures})
    curves = [
        [(r["env_steps"], r["episodic_return"]) for r in fit.training.history] for fit in fits
    ]
    figures = {"learning": plot_learning(curves, wanted=wanted)}
    figures["episode"] = plot_frames(*frames(fits[0], trainer, generator))
    return Study(
        (
            at_least(f"seeds of {seeds} with {wanted:g} or more", reached, share * seeds),
            Finding(f"least mean return of {episodes} new episodes", worst),
            at_most("most environment steps", max(used), steps + trainer.num_envs * LEEWAY),
            Finding("most seconds of training with evaluations", max(times)),
            Finding("mean seconds", sum(times) / seeds),
        ),
        figures,
        tuple(f"met on the way: {name}" for name in failures),
    )


def frames(
    fit: PolicyFit, trainer: Reinforce, generator: torch.Generator | None
) -> tuple[list[Any], list[str]]:
    """Pictures of one episode at equal distances."""
    import gymnasium

    options = trainer.options or {}
    environment = gymnasium.make(trainer.environment, render_mode="rgb_array", **options)
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    seen, ended, shots, total = environment.reset(seed=seed)[0], False, [], 0.0
    while not ended:
        shots.append(environment.render())
        action = fit.act(torch.as_tensor(seen)[None])[0].numpy()
        seen, reward, terminated, truncated, _ = environment.step(action)
        total, ended = total + float(reward), terminated or truncated
    environment.close()
    at = [round(i * (len(shots) - 1) / (_FRAMES - 1)) for i in range(_FRAMES)]
    return [shots[i] for i in at], [f"step {i}" for i in at]
