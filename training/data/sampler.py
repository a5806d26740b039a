"""Draws samples in a seeded order that can be taken up again at any sample, on any ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_align_ros.errors import DataError

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Draws:
    """One rank's part of a global batch.

    indices (B,) int64: rows of the data set. passes (B,) int64: the pass over its group's samples
    to which each belongs; a pair of row and pass never comes twice. start: samples drawn before
    this global batch, over all ranks.
    """

    indices: Int64Array
    passes: Int64Array
    start: int


class SampleSampler:
    """An endless stream of samples, cut into global batches, of which every rank takes its part.

    The stream depends on the seed and the samples alone, and its only state is how many samples
    were drawn: another batch size or number of ranks continues it without repeating or skipping
    one. Every epoch is a permutation; batches may reach across its end, so none is left out.

    With weights (of the group that `groups` names a sample's), a sample of weight w comes w times
    an epoch on average, as in OpenVLA's mixtures: weight 1 everywhere is the plain union. Each
    group then runs through permutations of its own.
    """

    def __init__(
        self,
        indices: npt.ArrayLike,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        groups: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
    ) -> None:
        """Sample `batch_size` a rank from `indices` (N,) int; `groups` (N,) int into `weights`."""
        self._indices = np.asarray(indices, dtype=np.int64)
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._seed, self._drawn = seed, 0
        if batch_size < 1 or not 0 <= rank < world_size:
            raise DataError(
                "The sampler cannot be set up",
                got=f"batch size {batch_size}, rank {rank} of {world_size}",
                expected="a batch size of 1 or more and 0 <= rank < world size",
                fix="correct the recipe's batch size or the launcher's ranks",
            )
        self._members, self._shares = _split_groups(self._indices, groups, weights)
        if self.samples_per_epoch < self.global_batch or not len(self._indices):
            raise DataError(
                "The dataset fills no batch",
                got=f"{self.samples_per_epoch} samples",
                expected=f"at least {self.global_batch}",
                fix="collect more episodes or lower the batch size",
            )
        self._orders: dict[tuple[int, int], Int64Array] = {}

    @property
    def global_batch(self) -> int:
        """Samples of one step over all ranks."""
        return self._batch_size * self._world_size

    @property
    def samples_per_epoch(self) -> int:
        """Samples after which every one came once (with weights: as often as they say)."""
        return int(sum(self._shares))

    @property
    def samples_drawn(self) -> int:
        """Samples drawn so far over all ranks."""
        return self._drawn

    @property
    def epoch(self) -> int:
        """Epochs finished so far."""
        return self._drawn // self.samples_per_epoch

    def next_draws(self) -> Draws:
        """This rank's part of the next global batch."""
        start = self._drawn
        first = start + self._rank * self._batch_size
        self._drawn += self.global_batch
        indices, passes = self.peek(first, first + self._batch_size)
        return Draws(indices, passes, start)

    def next_indices(self) -> Int64Array:
        """This rank's next batch (B,) of rows."""
        return self.next_draws().indices

    def peek(self, first: int, after: int) -> tuple[Int64Array, Int64Array]:
        """Rows and passes, (n,) int64 each, of the stream's samples first..after - 1."""
        length, parts = self.samples_per_epoch, []
        while first < after:
            epoch, position = divmod(first, length)
            stop = min(length, position + after - first)
            slots = self._order(epoch, -1, length)[position:stop]
            parts.append(self._look_up(epoch, slots))
            first += stop - position
        indices, passes = (np.concatenate(part) for part in zip(*parts, strict=True))
        return indices, passes

    def state_dict(self) -> dict[str, Any]:
        """How many samples were drawn, with what must not change on resuming."""
        return {
            "seed": self._seed,
            "samples": len(self._indices),
            "samples_per_epoch": self.samples_per_epoch,
            "drawn": self._drawn,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; raise DataError for other data or seed."""
        own = self.state_dict()
        fixed = ("seed", "samples", "samples_per_epoch")
        differing = [key for key in fixed if own[key] != state.get(key)]
        if differing or "drawn" not in state:
            raise DataError(
                "The sampler's saved position belongs to another run",
                got=", ".join(f"{key}={own[key]}" for key in differing),
                expected=", ".join(f"{key}={state.get(key)}" for key in differing),
                fix="resume with the same data, seed and weights, or start a new run",
            )
        self._drawn = int(state["drawn"])

    def _look_up(self, epoch: int, slots: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Rows and passes of an epoch's slots: slot s of a group is its next sample but s."""
        indices, passes = np.empty_like(slots), np.empty_like(slots)
        begin = 0
        for group, (members, share) in enumerate(zip(self._members, self._shares, strict=True)):
            here = np.flatnonzero((slots >= begin) & (slots < begin + share))
            count = epoch * share + slots[here] - begin  # samples of this group before it
            passes[here] = count // len(members)
            for number in np.unique(passes[here]):
                order = self._order(int(number), group, len(members))
                chosen = here[passes[here] == number]
                within = epoch * share + slots[chosen] - begin - number * len(members)
                indices[chosen] = members[order[within]]
            begin += share
        return indices, passes

    def _order(self, epoch: int, group: int, length: int) -> Int64Array:
        """Permutation `epoch` of a group's samples, or (group -1) of an epoch's slots."""
        key = (epoch, group)
        if key not in self._orders:
            if len(self._orders) > 4 * (len(self._members) + 1):
                self._orders.clear()
            rng = np.random.default_rng([self._seed, epoch, group + 1])
            self._orders[key] = rng.permutation(length)
        return self._orders[key]


def _split_groups(
    indices: Int64Array, groups: npt.ArrayLike | None, weights: npt.ArrayLike | None
) -> tuple[list[Int64Array], list[int]]:
    """Members of every group that has any, and how many samples each gives an epoch."""
    if groups is None or weights is None:
        return [indices], [len(indices)]
    given, numbers = np.asarray(weights, dtype=np.float64), np.asarray(groups, dtype=np.int64)
    if (given == 1.0).all():
        return [indices], [len(indices)]
    if given.ndim != 1 or not np.isfinite(given).all() or (given <= 0.0).any():
        raise DataError(
            "A data set's weight makes no sense",
            got=str(given.tolist()),
            expected="finite numbers above 0",
            fix="write --data DIR:WEIGHT, for example data/a:2",
        )
    members = [indices[numbers == group] for group in range(len(given))]
    shares = [max(1, round(len(m) * w)) for m, w in zip(members, given, strict=True) if len(m)]
    return [m for m in members if len(m)], shares
