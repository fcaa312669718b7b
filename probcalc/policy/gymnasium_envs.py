"""Environments of gymnasium, any of them, as copies that are stepped together."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probcalc._check import unknown_name
from probcalc.policy.environments import (
    Actions,
    Choices,
    EnvironmentFault,
    Interval,
    Transition,
)
from probcalc.policy.snapshots import parts, plain, rebuilt

_TRIAL = 4  # steps that a restored copy must repeat to be believed


class Gymnasium:
    """Copies of an environment of gymnasium.

    The autoreset mode is read from the metadata. A vector implementation that the environment
    brings is preferred to copies that are stepped one by one.

    Args:
        environment: An id such as ``"CartPole-v1"``; a function that makes one environment; or a
            `gymnasium.vector.VectorEnv`, which is used as it is.
        num_envs: Copies; of a `VectorEnv` those that it has.
        **options: Of the environment, such as ``is_slippery=False``.

    Raises:
        ImportError: If gymnasium is not installed.
        ValueError: If the id is unknown, or observations or actions are not supported.
    """

    def __init__(self, environment: Any, num_envs: int = 8, **options: Any) -> None:
        gym = _gymnasium()
        if num_envs < 1:
            raise ValueError(f"`num_envs` must be at least 1, got {num_envs}.")
        self._source, self._options = environment, options
        self.vector = _vectorised(gym, environment, num_envs, options)
        self.num_envs = self.vector.num_envs
        spec = getattr(self.vector, "spec", None)
        self.name = environment if isinstance(environment, str) else getattr(spec, "id", "custom")
        self.device = torch.device("cpu")
        single = self.vector.single_observation_space
        self._encode, self.observation_shape = _encoding(gym, single, self.name)
        self.actions = _actions(gym, self.vector.single_action_space, self.name)
        modes = gym.vector.AutoresetMode
        mode = self.vector.metadata.get("autoreset_mode", modes.NEXT_STEP)
        self._next, self._disabled = mode == modes.NEXT_STEP, mode == modes.DISABLED
        self._ended = np.zeros(self.num_envs, dtype=bool)
        self._episodes = np.zeros(self.num_envs, dtype=np.int64)
        self._steps = np.zeros(self.num_envs, dtype=np.int64)
        self._whole: bool | None = None  # whether `state` holds all that decides what follows

    def reset(self, seed: int) -> Tensor:
        """Begin an episode in every copy."""
        self._ended[:] = False
        self._episodes[:], self._steps[:] = 0, 0
        with self._watched("reset"):
            observation, _ = self.vector.reset(seed=seed % 2**31)
        return self._checked(observation)

    def step(self, actions: Tensor) -> Transition:
        """One step of every copy.

        Raises:
            EnvironmentFault: If a copy raises, or gives a number that is none.
        """
        self._steps += 1
        with self._watched("step"):
            found = self.vector.step(self._given(actions))
        observation, reward, terminated, truncated, info = found
        seen = self._checked(observation)
        reward = np.asarray(reward, dtype=np.float32)
        if not math.isfinite(float(reward.sum())):
            raise EnvironmentFault(self._where("gave a reward that is not finite", reward))
        void = None
        if self._next and self._ended.any():
            void = torch.from_numpy(self._ended)
        self._ended = terminated | truncated
        final = None
        if self._ended.any() or void is not None:
            final, seen = self._ends(seen, info, void)
        ends = torch.from_numpy(terminated), torch.from_numpy(truncated)
        return Transition(seen, torch.from_numpy(reward), *ends, final, void)

    def copies(self, num: int) -> Gymnasium:
        """Others like these.

        Raises:
            ValueError: If they came as a `VectorEnv` that no id is known of.
        """
        source = self._source
        if not (isinstance(source, str) or callable(source)):
            if getattr(source, "spec", None) is None:
                raise ValueError(
                    "a `VectorEnv` without a spec cannot be made again: give an id, or a function "
                    "that makes one environment, or evaluate on another `VectorEnv`."
                )
            source = source.spec.id
        return Gymnasium(source, num, **self._options)

    def state(self) -> dict[str, Any] | None:
        """Plain attributes of all copies and their wrappers, and their generators."""
        if self._whole is False:
            return None
        own = {"ended": self._ended, "episodes": self._episodes, "steps": self._steps}
        return {"own": plain(own), "parts": [plain(vars(part)) for part in parts(self.vector)]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go there."""
        own = {name: rebuilt(value) for name, value in state["own"].items()}
        self._ended, self._episodes, self._steps = own["ended"], own["episodes"], own["steps"]
        for part, values in zip(parts(self.vector), state["parts"], strict=True):
            for name, value in values.items():
                vars(part)[name] = rebuilt(value, vars(part).get(name))

    def is_restorable(self, seed: int, act: Callable[[Tensor], Tensor]) -> bool:
        """Whether copies that are put back repeat their steps to the bit; tried on a few.

        Copies are left anywhere: reset them afterwards.
        """
        at = self.reset(seed)
        for _ in range(2):
            at = self.step(act(at)).observation
        before, paths = copy.deepcopy(self.state()), []
        actions = [act(at) for _ in range(_TRIAL)]
        for _ in range(2):
            steps = [self.step(a) for a in actions]
            paths.append([t for s in steps for t in (s.observation, s.reward, s.terminated)])
            self.restore(before)
        self._whole = all(torch.equal(a, b) for a, b in zip(*paths, strict=True))
        return self._whole

    def close(self) -> None:
        """Let go of windows and processes."""
        self.vector.close()

    def _given(self, actions: Tensor) -> Any:
        if isinstance(self.actions, Choices):
            return actions.numpy()
        clipped = torch.minimum(torch.maximum(actions, self.actions.low), self.actions.high)
        return clipped.numpy().reshape(self.vector.action_space.shape)

    def _checked(self, observation: Any) -> Tensor:
        seen = self._encode(observation)
        if not math.isfinite(float(seen.sum())):
            bad = seen.numpy()
            raise EnvironmentFault(self._where("gave an observation that is not finite", bad))
        return seen

    def _ends(
        self, seen: Tensor, info: dict[str, Any], void: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        """Last observations of the episodes that ended, and what is to be acted on."""
        if void is not None:
            self._episodes[void.numpy()] += 1
            self._steps[void.numpy()] = 0
        if self._next:
            return None, seen
        ended = self._ended
        self._episodes[ended] += 1
        self._steps[ended] = 0
        if self._disabled:
            with self._watched("reset"):
                begun, _ = self.vector.reset(options={"reset_mask": ended.copy()})
            self._ended = np.zeros_like(ended)
            return seen, self._checked(begun)
        final = seen.clone()
        rows = np.stack([info["final_obs"][i] for i in np.flatnonzero(ended)])
        final[torch.from_numpy(ended)] = self._encode(rows)
        return final, seen

    def _where(self, what: str, values: np.ndarray | None = None) -> str:
        place = ""
        if values is not None:
            copy_ = int(np.argmax(~np.isfinite(values.reshape(self.num_envs, -1)).all(axis=1)))
            place = f" in copy {copy_}, episode {self._episodes[copy_]}, step {self._steps[copy_]}"
        elif self.num_envs == 1:
            place = f" in episode {self._episodes[0]}, step {self._steps[0]}"
        else:
            each = zip(self._episodes.tolist(), self._steps.tolist(), strict=True)
            told = ", ".join(f"{i}: {e}/{s}" for i, (e, s) in enumerate(each))
            place = f" (copy: episode/step is {told[:400]})"
        return f"{self.name} {what}{place}."

    def _watched(self, what: str) -> _Watched:
        return _Watched(self, what)


class _Watched:
    """Turns what an environment raises into a fault that names where it was."""

    def __init__(self, copies: Gymnasium, what: str) -> None:
        self.copies, self.what = copies, what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        if isinstance(error, Exception):
            words = f"raised {kind.__name__} ({error}) in {self.what}"
            raise EnvironmentFault(self.copies._where(words)) from error


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError(
            "environments by name need the package gymnasium: pip install 'probcalc[policy]'."
        ) from error
    return gymnasium


def _vectorised(gym: Any, environment: Any, num_envs: int, options: dict[str, Any]) -> Any:
    """Copies stepped together.

    Raises:
        ValueError: If the id is unknown.
        TypeError: If it is no environment at all.
    """
    if isinstance(environment, gym.vector.VectorEnv):
        return environment
    together = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    if callable(environment):
        made = [lambda: environment(**options)] * num_envs
        return gym.vector.SyncVectorEnv(made, **together)
    if not isinstance(environment, str):
        raise TypeError(
            "an environment is an id, a function that makes one, or a VectorEnv, got "
            f"{type(environment).__name__}."
        )
    known = gym.registry
    if environment not in known:
        raise ValueError(unknown_name("environment", environment, known))
    if known[environment].vector_entry_point is not None:
        mode = "vector_entry_point"
        return gym.make_vec(environment, num_envs, vectorization_mode=mode, **options)
    return gym.make_vec(
        environment, num_envs, vectorization_mode="sync", vector_kwargs=together, **options
    )


def _encoding(gym: Any, space: Any, name: str) -> tuple[Callable[[Any], Tensor], tuple[int, ...]]:
    """From observations to float32 tensors; a discrete one is one of as many ones.

    Raises:
        ValueError: If the space is another.
    """
    if isinstance(space, gym.spaces.Box):
        if space.dtype == np.float32:
            return torch.from_numpy, space.shape
        return lambda x: torch.from_numpy(np.asarray(x, dtype=np.float32)), space.shape
    if isinstance(space, gym.spaces.Discrete):
        ones = torch.eye(int(space.n))
        start = int(space.start)
        return lambda x: ones[torch.from_numpy(np.asarray(x)) - start], (int(space.n),)
    raise ValueError(
        f"observations of {name} are {space}, which is not supported: Box and Discrete are. Wrap "
        "the environment in gymnasium.wrappers.FlattenObservation."
    )


def _actions(gym: Any, space: Any, name: str) -> Actions:
    """What a policy chooses from.

    Raises:
        ValueError: If it is something else than a number of choices or a box.
    """
    if isinstance(space, gym.spaces.Discrete) and int(space.start) == 0:
        return Choices(int(space.n))
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating):
        ends = (space.low, space.high)
        return Interval(*(torch.from_numpy(np.ravel(end).astype(np.float32)) for end in ends))
    raise ValueError(
        f"actions of {name} are {space}, which is not supported: Discrete from 0 and Box of "
        "floats are. Wrap the environment so that it takes one of them."
    )
