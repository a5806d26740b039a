"""How plans that overlap in time become one action: the named strategies of chunk execution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.contract.observation import ActionChunk
from vla_align_ros.contract.spec import ActionSpec
from vla_align_ros.errors import ConfigurationError

ENSEMBLE_DECAY = 0.01  # of "Learning Fine-Grained Bimanual Manipulation" (ACT), section IV
GRIPPER = 6
_NOW = 1e-6  # of a period: less lies between two readings of one moment


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A chunk that the buffer accepted: its count from 1, and when it arrived in seconds.

    told: with how many actions, decided before, it begins.
    """

    chunk: ActionChunk
    number: int
    arrived_s: float
    told: int = 0

    def index_at(self, now_s: float) -> int | None:
        """Which action belongs to `now_s`, by the observation's stamp; None outside the chunk.

        An observation stamped ahead of `now_s` by less than a period counts as taken now (two
        processes read the clock at different instants); one further ahead is not executed.
        """
        index = count_periods(self.chunk.stamp_s, self.chunk.period_s, now_s)
        index = 0 if index == -1 else index
        return index if 0 <= index < self.chunk.horizon else None


def count_periods(stamp_s: float, period_s: float, now_s: float) -> int:
    """Whole periods since a stamp; below -1 where it is further ahead than one period."""
    return math.floor((now_s - stamp_s) / period_s)


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The action (7,) for now, and the newest plan and its index that it rests on."""

    action: NDArray[np.float64]
    plan: Plan
    index: int


class Strategy(Protocol):
    """Chooses from plans of one instruction, oldest first; called by one thread.

    `commits`: whether a new plan is to go on from what the plan before has it execute meanwhile.
    """

    name: str
    commits: bool

    def choose(self, plans: Sequence[Plan], now_s: float) -> Choice | None:
        """The action for `now_s`, None where nothing is planned."""
        ...

    def reset(self) -> None:
        """Forget what was being executed: the instruction or the clock changed."""
        ...


class Newest:
    """The newest plan takes over as soon as it is there. Quick to react, abrupt at hand-over."""

    name = "newest"
    commits = False

    def choose(self, plans: Sequence[Plan], now_s: float) -> Choice | None:
        """Read the newest plan at its own place in time."""
        return _read(plans[-1], now_s) if plans else None

    def reset(self) -> None:
        """Nothing is kept."""


class Queue:
    """Play a chunk to its end, then the newest one, each from its first action on.

    What most deployments do, and the baseline to compare with: actions are late by the delay of
    inference, and nothing new is seen for a whole chunk. A chunk begins only while its observation
    is no older than the chunk is long, and lasts its own length from then on.
    """

    name = "queue"
    commits = False

    def __init__(self) -> None:
        self._playing: Plan | None = None
        self._started_s = 0.0

    def choose(self, plans: Sequence[Plan], now_s: float) -> Choice | None:
        """Read the chunk that is being played; take the next one when it is over."""
        choice = self._read(now_s)
        if choice is not None or not plans or plans[-1] is self._playing:
            return choice
        if plans[-1].index_at(now_s) is None:
            return None
        self._playing, self._started_s = plans[-1], now_s
        return self._read(now_s)

    def reset(self) -> None:
        """Drop the chunk that is being played."""
        self._playing = None

    def _read(self, now_s: float) -> Choice | None:
        if self._playing is None:
            return None
        chunk = self._playing.chunk
        # Half a nanosecond: the first moment of an action belongs to it, whatever rounding says.
        index = math.floor((now_s - self._started_s) / chunk.period_s + 1e-9)
        if not 0 <= index < chunk.horizon:
            return None
        return Choice(chunk.actions[index], self._playing, index)


class Ensemble:
    """The mean of every plan's action for now, older plans weighted exp(-decay * i) from i = 0.

    Temporal ensembling of ACT (Zhao et al. 2023), section IV: the oldest has the largest weight.
    Smooth, and slow to react. Rotation vectors are averaged as they are, which is right for the
    small rotations of one step. The gripper is the newest plan's: half open is no compromise
    between open and closed.
    """

    name = "ensemble"
    commits = False

    def __init__(self, decay: float = ENSEMBLE_DECAY) -> None:
        if not (math.isfinite(decay) and decay >= 0):
            raise _bad_setting("decay", decay, "a finite number of at least 0")
        self._decay = decay

    def choose(self, plans: Sequence[Plan], now_s: float) -> Choice | None:
        """Average what all plans say about `now_s`."""
        if not plans or (newest := _read(plans[-1], now_s)) is None:
            return None
        choices = [choice for plan in plans if (choice := _read(plan, now_s)) is not None]
        weights = np.exp(-self._decay * np.arange(len(choices)))
        mean = np.average([choice.action for choice in choices], axis=0, weights=weights)
        return _with_gripper(mean, newest)

    def reset(self) -> None:
        """Nothing is kept."""


class Blend:
    """The newest plan takes over within `blend_s`, linearly from what was executed until then.

    As quick as "newest" but for the hand-over, whose step in velocity is spread over `blend_s`.
    The gripper changes over at once. An older plan must last that long: see `check_strategy`.
    """

    name = "blend"
    commits = False

    def __init__(self, blend_s: float = 0.2) -> None:
        if not (math.isfinite(blend_s) and blend_s > 0):
            raise _bad_setting("blend_s", blend_s, "a finite number of seconds above 0")
        self.blend_s = blend_s

    def choose(self, plans: Sequence[Plan], now_s: float) -> Choice | None:
        """Fold the plans from the oldest on, each faded in since its arrival."""
        if not plans or (newest := _read(plans[-1], now_s)) is None:
            return None
        action: NDArray[np.float64] | None = None
        for plan in plans:
            choice = _read(plan, now_s)
            if choice is None:
                continue
            share = min(max((now_s - plan.arrived_s) / self.blend_s, 0.0), 1.0)
            action = choice.action if action is None else action + share * (choice.action - action)
        return None if action is None else _with_gripper(action, newest)

    def reset(self) -> None:
        """Nothing is kept."""


class RealTime:
    """A plan takes over where the actions end that it was told, from which it was made to go on.

    Real-time chunking (arXiv 2506.07339), by a policy that was trained to be told the actions that
    are executed while it plans (arXiv 2512.05964): `ActionSpec.committed` is above 0. A plan that
    comes later than that takes over at once.
    """

    name = "rtc"
    commits = True

    def choose(self, plans: Sequence[Plan], now_s: float) -> Choice | None:
        """Read the newest plan that plans `now_s`, the others being told it."""
        for plan in reversed(plans):
            choice = _read(plan, now_s)
            if choice is not None and choice.index >= plan.told:
                return choice
        return _read(plans[-1], now_s) if plans else None

    def reset(self) -> None:
        """Nothing is kept."""


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    strategy.name: strategy for strategy in (Newest, Queue, Ensemble, Blend, RealTime)
}


def find_strategy(name: str, **settings: float) -> Strategy:
    """Make the strategy called `name`; ConfigurationError lists the valid names.

    `settings` are the strategy's own (`decay`, `blend_s`).
    """
    if name not in STRATEGIES:
        raise ConfigurationError(
            "no such strategy of chunk execution",
            got=repr(name),
            expected="one of " + ", ".join(STRATEGIES),
            fix="correct the parameter chunk_strategy",
        )
    return STRATEGIES[name](**settings)


def check_strategy(strategy: Strategy, action: ActionSpec, replan_period_s: float = 0.0) -> None:
    """ConfigurationError if a policy of this action cannot be run by the strategy.

    `replan_period_s` is the time between two plans: a hand-over that outlasts the older one would
    end with the jump that it should spread.
    """
    if strategy.commits and not action.committed:
        raise ConfigurationError(
            f"the policy cannot be run by {strategy.name}",
            got="a head that takes no committed actions",
            expected="a policy trained with model.head.committed above 0",
            fix="set chunk_strategy to newest, or train and export the policy with it",
        )
    longest_s = action.horizon * action.period_s - replan_period_s
    if isinstance(strategy, Blend) and strategy.blend_s > longest_s + _NOW:
        raise ConfigurationError(
            "a hand-over takes longer than the older plan lasts",
            got=f"blend_s {strategy.blend_s:g}",
            expected=f"at most {longest_s:g} s: plans of {action.horizon * action.period_s:g} s, "
            f"{replan_period_s:g} s apart",
            fix="set a smaller blend_s, well below that by the delay of inference",
        )


def count_committed(delay_s: float, action: ActionSpec) -> int:
    """How many actions are decided while a plan takes `delay_s`; at most what the policy takes."""
    return min(max(0, math.ceil(delay_s / action.period_s - _NOW)), action.committed)


def read_ahead(
    strategy: Strategy, plans: Sequence[Plan], from_s: float, count: int
) -> NDArray[np.float64]:
    """What the plans have executed in `count` periods from `from_s` on: (K, 7), read-only.

    Each is the mean of what is executed within its period, by time, with the gripper of its
    longest part. K is less than `count` where the plans end before. For a strategy without memory.
    """
    period_s = plans[-1].chunk.period_s if plans else 0.0
    ahead: list[NDArray[np.float64]] = []
    for begin_s in (from_s + k * period_s for k in range(count)):
        edges = _edges(plans, begin_s, begin_s + period_s)
        lengths = np.diff(edges)
        choices = [strategy.choose(plans, now_s) for now_s in edges[:-1] + lengths / 2]
        actions = [choice.action for choice in choices if choice is not None]
        if len(actions) < len(lengths):
            break
        mean = np.average(actions, axis=0, weights=lengths)
        mean[GRIPPER] = actions[int(lengths.argmax())][GRIPPER]
        ahead.append(mean)
    told = np.array(ahead).reshape(-1, GRIPPER + 1)
    told.flags.writeable = False
    return told


def _edges(plans: Sequence[Plan], begin_s: float, end_s: float) -> NDArray[np.float64]:
    """The two moments, and those between them at which an action of a plan begins, in order."""
    inner = []
    for plan in plans:
        passed = (begin_s - plan.chunk.stamp_s) / plan.chunk.period_s
        edge_s = plan.chunk.stamp_s + math.ceil(passed) * plan.chunk.period_s
        margin_s = _NOW * plan.chunk.period_s
        inner += [edge_s] if begin_s + margin_s < edge_s < end_s - margin_s else []
    return np.array([begin_s, *sorted(inner), end_s])


def _read(plan: Plan, now_s: float) -> Choice | None:
    index = plan.index_at(now_s)
    return None if index is None else Choice(plan.chunk.actions[index], plan, index)


def _with_gripper(action: NDArray[np.float64], newest: Choice) -> Choice:
    mixed = np.array(action)
    mixed[GRIPPER] = newest.action[GRIPPER]
    mixed.flags.writeable = False
    return Choice(mixed, newest.plan, newest.index)


def _bad_setting(name: str, value: object, expected: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name} of a chunk strategy cannot be used",
        got=repr(value),
        expected=expected,
        fix="correct the node's parameters",
    )
