"""Draws batches in a seeded order that can be stopped and taken up again at any batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_align_ros.errors import DataError


class BatchSampler:
    """Endless batches of indices: every epoch is a permutation drawn from (seed, epoch).

    With several ranks every rank constructs the same sampler but for `rank` and gets its own
    `batch_size` of each global batch. An epoch's rest that fills no global batch is left out.
    """

    def __init__(
        self,
        indices: np.ndarray,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Sample from `indices` (N,) int; raise DataError if they fill no batch."""
        self._indices = np.asarray(indices, dtype=np.int64)
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._seed = seed
        self._epoch = self._position = 0
        self._order: np.ndarray | None = None
        if batch_size < 1 or not 0 <= rank < world_size:
            raise DataError(
                "The sampler cannot be set up",
                got=f"batch size {batch_size}, rank {rank} of {world_size}",
                expected="a batch size of 1 or more and 0 <= rank < world size",
                fix="correct the recipe's batch size or the launcher's ranks",
            )
        if self.batches_per_epoch < 1:
            raise DataError(
                "The dataset fills no batch",
                got=f"{len(self._indices)} samples",
                expected=f"at least {batch_size * world_size}",
                fix="collect more episodes or lower the batch size",
            )

    @property
    def batches_per_epoch(self) -> int:
        """Global batches that one epoch gives."""
        return len(self._indices) // (self._batch_size * self._world_size)

    @property
    def epoch(self) -> int:
        """Epochs finished so far."""
        return self._epoch

    def next_indices(self) -> np.ndarray:
        """This rank's next batch (B,) of dataset indices."""
        if self._position >= self.batches_per_epoch:
            self._epoch, self._position, self._order = self._epoch + 1, 0, None
        if self._order is None:
            rng = np.random.default_rng([self._seed, self._epoch])
            self._order = rng.permutation(self._indices)
        start = (self._position * self._world_size + self._rank) * self._batch_size
        self._position += 1
        return self._order[start : start + self._batch_size]

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands, together with what must not change on resuming."""
        return {
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
            "samples": len(self._indices),
            "global_batch": self._batch_size * self._world_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; raise DataError for other data or batch size."""
        own = self.state_dict()
        fixed = ("seed", "samples", "global_batch")
        differing = [key for key in fixed if own[key] != state.get(key)]
        if differing:
            raise DataError(
                "The sampler's saved position belongs to another run",
                got=", ".join(f"{key}={own[key]}" for key in differing),
                expected=", ".join(f"{key}={state.get(key)}" for key in differing),
                fix="resume with the same data, seed and batch size, or start a new run",
            )
        self._epoch, self._position = int(state["epoch"]), int(state["position"])
        self._order = None
