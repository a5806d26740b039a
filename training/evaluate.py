"""Offline evaluation: does the policy see where the named things are, before any robot moves?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.parallel import Ranks, free_gathered, move_batch
from training.setup_run import RunParts

MAX_FRAMES = 1024
FIRST_FRAMES = 256
FITTED_FRAMES = 20_000
BATCH = 64  # at most: never more than a step holds on a device at once


class OfflineEvaluator:
    """Compares predictions with the expert on held-out episodes.

    The displacement error is the distance in metres between the ends of the predicted and the
    expert's chunk. On first frames it tells whether the policy has found the named object; it is
    given beside a blind baseline, the best affine guess from proprioception alone. Everything
    else is measured on a uniform draw of MAX_FRAMES; a draw of FIRST_FRAMES, each the first used
    one of a held-out episode, is looked at for the first-frame scalars alone: large data have few
    of them among the others. Steps past an episode's end count nowhere.
    """

    def __init__(self, parts: RunParts, ranks: Ranks | None = None) -> None:
        self.parts, self.ranks = parts, ranks or Ranks()
        optim, pieces = parts.config.optim, parts.config.parallel.accumulate
        self.batch = min(BATCH, optim.batch_size // (self.ranks.world * pieces))
        data = parts.data
        train, held_out = data.indices("train"), data.indices("val")
        rng = np.random.default_rng(0)
        drawn = rng.permutation(held_out)[:MAX_FRAMES]
        begins = held_out[np.unique(data.episode[held_out], return_index=True)[1]]
        extra = np.random.default_rng(0).permutation(begins)[:FIRST_FRAMES]
        self.indices = np.union1d(drawn, extra)
        self.drawn, self.first = np.isin(self.indices, drawn), np.isin(self.indices, begins)
        self.chunks, is_pad = data.chunks(self.indices)
        self.counts = ~is_pad
        self.truth = _displacement(self.chunks)
        train = np.sort(rng.permutation(train)[:FITTED_FRAMES])
        coefficients, *_ = np.linalg.lstsq(
            _affine(data.state[train]), _displacement(data.chunks(train)[0]), rcond=None
        )
        self.blind = _affine(data.state[self.indices]) @ coefficients

    @torch.no_grad()
    def measure(self, *, frozen_vision: bool) -> dict[str, float]:
        """Scalars of this moment: L1, displacement errors in metres, gripper, grounding.

        All ranks call it; each predicts its share of the frames.
        """
        objective, ranks = self.parts.objective, self.ranks
        objective.eval()
        # The tokens head decodes step by step, from pictures.
        speaks = objective.model.action_tokens is not None
        cached = frozen_vision and not speaks
        looks = not speaks or self.parts.grounding is not None
        own = _take_share(self.indices, ranks)
        actions, maps = [], []
        for start in range(0, len(own), self.batch):
            batch = self.parts.load(own[start : start + self.batch], frozen_vision=cached)
            batch = move_batch(batch, ranks.device)
            predicted = grounding = None
            if looks:
                output = objective.predict(batch)
                predicted, grounding = output.actions, output.grounding
            actions.append(self._read_actions(predicted, batch))
            if grounding is not None:
                maps.append(grounding.float().softmax(-1).cpu())
        free_gathered(objective)
        metrics = self._action_metrics(self._join(np.concatenate(actions)))
        if maps and self.parts.grounding is not None:
            joined = self._join(torch.cat(maps).numpy())
            metrics |= self._grounding_metrics(torch.from_numpy(joined))
        return metrics

    def _join(self, own: NDArray[np.float32]) -> NDArray[np.float32]:
        """Every rank's share in the frames' order, without what filled the last share up."""
        shares = self.ranks.gather(own) if self.ranks.world > 1 else [own]
        joined: NDArray[np.float32] = np.concatenate(shares)[: len(self.indices)]
        return joined

    def _read_actions(
        self, actions: Tensor | None, batch: dict[str, Tensor]
    ) -> NDArray[np.float32]:
        if actions is None:
            inputs = (batch["pixel_values"], batch["input_ids"], batch["attention_mask"])
            actions = self.parts.objective.model.predict(*inputs, batch.get("state"))
        values: NDArray[np.float32] = actions.float().cpu().numpy()
        return values

    def _action_metrics(self, predicted: NDArray[np.float32]) -> dict[str, float]:
        processor, drawn = self.parts.processor, self.drawn
        counts = self.counts & drawn[:, None]
        target = processor.encode_actions(self.chunks)
        metric = processor.normalizers["action"].denormalize(predicted)
        ends = _displacement(metric * self.counts[..., None])
        error = np.linalg.norm(ends - self.truth, axis=-1)
        blind = np.linalg.norm(self.blind - self.truth, axis=-1)
        is_open = (predicted[..., -1] > 0.5) == (self.chunks[..., -1] > 0.5)
        return {
            "val/l1": float(np.abs(predicted - target)[counts].mean()),
            "val/displacement_m": float(error[drawn].mean()),
            "val/displacement_median_m": float(np.median(error[drawn])),
            "val/first_frame_displacement_m": float(error[self.first].mean()),
            "val/first_frame_blind_m": float(blind[self.first].mean()),
            "val/gripper_accuracy": float(is_open[counts].mean()),
        }

    def _grounding_metrics(self, maps: Tensor) -> dict[str, float]:
        grid = self.parts.objective.model.grid
        centres = (torch.arange(grid, dtype=torch.float32) + 0.5) / grid
        square = maps.unflatten(-1, (grid, grid))
        found = torch.stack([square.sum(-2) @ centres, square.sum(-1) @ centres], dim=-1)
        miss = (found - self.parts.grounding_points(self.indices)).norm(dim=-1)[self.drawn] * grid
        return {
            "val/grounding_object_patches": float(miss[:, 0].median()),
            "val/grounding_receptacle_patches": float(miss[:, 1].median()),
        }


def _take_share(indices: NDArray[np.int64], ranks: Ranks) -> NDArray[np.int64]:
    """This rank's part, equally long on all: FSDP's ranks must run the network equally often."""
    size = -(-len(indices) // ranks.world)
    filled = np.resize(indices, size * ranks.world)
    return filled[ranks.rank * size : (ranks.rank + 1) * size]


def _displacement(chunk: NDArray[np.floating]) -> NDArray[np.float64]:
    """Sum of a chunk's translations: (N, H, 7) to (N, 3), in metres."""
    total: NDArray[np.float64] = np.asarray(chunk, np.float64)[..., :3].sum(axis=-2)
    return total


def _affine(state: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(state, np.float64), np.ones((len(state), 1))], axis=1)
