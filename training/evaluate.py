"""Offline evaluation: does the policy see where the named things are, before any robot moves?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.setup_run import RunParts

MAX_FRAMES = 1024
BATCH = 64


class OfflineEvaluator:
    """Compares predictions with the expert on held-out episodes.

    The displacement error is the distance in metres between the ends of the predicted and the
    expert's chunk. On first frames it tells whether the policy has found the named object; it is
    given beside a blind baseline, the best affine guess from proprioception alone.
    """

    def __init__(self, parts: RunParts) -> None:
        self.parts = parts
        data = parts.data
        train, held_out = data.indices("train"), data.indices("val")
        rng = np.random.default_rng(0)
        self.indices = np.sort(rng.permutation(held_out)[:MAX_FRAMES])
        self.first = data.frame_index[self.indices] == 0
        self.truth = _displacement(data.action_chunk[self.indices])
        coefficients, *_ = np.linalg.lstsq(
            _affine(data.state[train]), _displacement(data.action_chunk[train]), rcond=None
        )
        self.blind = _affine(data.state[self.indices]) @ coefficients

    @torch.no_grad()
    def measure(self, *, frozen_vision: bool) -> dict[str, float]:
        """Scalars of this moment: L1, displacement errors in metres, gripper, grounding."""
        objective = self.parts.objective
        objective.eval()
        actions, maps = [], []
        # The tokens head decodes step by step, from pictures.
        cached = frozen_vision and objective.model.action_tokens is None
        for start in range(0, len(self.indices), BATCH):
            batch = self.parts.batch(self.indices[start : start + BATCH], frozen_vision=cached)
            output = objective.predict(batch)
            actions.append(self._read_actions(output.actions, batch))
            if output.grounding is not None:
                maps.append(output.grounding.float().softmax(-1))
        metrics = self._action_metrics(np.concatenate(actions))
        if maps and self.parts.grounding is not None:
            metrics |= self._grounding_metrics(torch.cat(maps))
        return metrics

    def _read_actions(
        self, actions: Tensor | None, batch: dict[str, Tensor]
    ) -> NDArray[np.float32]:
        if actions is None:
            inputs = (batch["pixel_values"], batch["input_ids"], batch["attention_mask"])
            actions = self.parts.objective.model.predict(*inputs, batch.get("state"))
        values: NDArray[np.float32] = actions.float().numpy()
        return values

    def _action_metrics(self, predicted: NDArray[np.float32]) -> dict[str, float]:
        processor, data = self.parts.processor, self.parts.data
        target = processor.encode_actions(data.action_chunk[self.indices])
        metric = processor.normalizers["action"].denormalize(predicted)
        error = np.linalg.norm(_displacement(metric) - self.truth, axis=-1)
        blind = np.linalg.norm(self.blind - self.truth, axis=-1)
        closed = data.action_chunk[self.indices][..., -1] > 0.5
        first = self.first if self.first.any() else np.ones_like(self.first)
        return {
            "val/l1": float(np.abs(predicted - target).mean()),
            "val/displacement_m": float(error.mean()),
            "val/displacement_median_m": float(np.median(error)),
            "val/first_frame_displacement_m": float(error[first].mean()),
            "val/first_frame_blind_m": float(blind[first].mean()),
            "val/gripper_accuracy": float(((predicted[..., -1] > 0.5) == closed).mean()),
        }

    def _grounding_metrics(self, maps: Tensor) -> dict[str, float]:
        assert self.parts.grounding is not None
        grid = self.parts.objective.model.grid
        centres = (torch.arange(grid, dtype=torch.float32) + 0.5) / grid
        square = maps.unflatten(-1, (grid, grid))
        found = torch.stack([square.sum(-2) @ centres, square.sum(-1) @ centres], dim=-1)
        miss = (found - self.parts.grounding[self.indices]).norm(dim=-1) * grid
        return {
            "val/grounding_object_patches": float(miss[:, 0].median()),
            "val/grounding_receptacle_patches": float(miss[:, 1].median()),
        }


def _displacement(chunk: NDArray[np.floating]) -> NDArray[np.float64]:
    """Sum of a chunk's translations: (N, H, 7) to (N, 3), in metres."""
    total: NDArray[np.float64] = np.asarray(chunk, np.float64)[..., :3].sum(axis=-2)
    return total


def _affine(state: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(state, np.float64), np.ones((len(state), 1))], axis=1)
