"""What a training step minimises: the action loss, alignment, and grounding, as one module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from training.alignment import Aligner
from training.config import LossConfig
from training.model import (
    PrismaticVLA,
    VlaOutput,
    chunk_l1_loss,
    displacement_l1_loss,
    grounding_loss,
)
from training.vqa import vqa_loss
from vla_align_ros.errors import TrainingError

Batch = Mapping[str, Any]


class Objective(nn.Module):
    """L = L_action + lambda * L_align + mu * L_ground (paper.md's method; the last is ours).

    Its forward takes a batch and returns (loss, scalars), so that it can be wrapped by
    DistributedDataParallel. Batch keys: `input_ids`, `attention_mask` (B, T) int64, `state`
    (B, D), `actions` (B, H, 7) normalised; `pixel_values` (B, C, S, S) or, with a frozen tower,
    `vision_features` (B, N, width); `teacher_features` (B, N, width) where lambda > 0;
    `grounding` (B, K, N) where mu > 0; `committed` (B, C, 7) and `committed_mask` (B, C) int64
    where actions are told, which then are no error of the plan; `action_tokens` (B, 7) int64 where
    actions are words; `vqa` (a batch of VqaBatches) where questions are asked beside.
    """

    def __init__(
        self,
        model: PrismaticVLA,
        aligner: Aligner | None,
        loss: LossConfig,
        *,
        vqa_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.vqa_weight = vqa_weight
        self.model = model
        self.aligner = aligner
        self.weights = loss
        weights = torch.ones(model.config.head.action_dim)
        weights[-1] = loss.gripper
        self.register_buffer("dim_weights", weights, persistent=False)
        self.align_weight = aligner.config.weight if aligner is not None else 0.0

    def set_step(self, step: int, steps: int) -> None:
        """Take the weights that `step` of `steps` has: lambda may follow a schedule."""
        if self.aligner is not None:
            self.align_weight = self.aligner.weight_at(step, steps)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and the scalars to log, each without gradient."""
        output = self.predict(batch)
        action, moved = self._action_losses(output, batch)
        total = action
        scalars = {"loss/action": action.detach()}
        if moved is not None:
            scalars["loss/displacement"] = moved.detach()
            total = total + self.weights.displacement * moved
        if self.aligner is not None:
            features = batch.get("teacher_features")
            total, cosines = self.aligner.total(total, output, features, self.align_weight)
            scalars |= cosines
        if self.weights.grounding > 0.0 and output.grounding is not None:
            ground = grounding_loss(output.grounding, batch["grounding"])
            scalars["loss/grounding"] = ground.detach()
            total = total + self.weights.grounding * ground
        if self.weights.tokens > 0.0:
            words = self._token_loss(output, batch)
            scalars["loss/tokens"] = words.detach()
            total = total + self.weights.tokens * words
        if "vqa" in batch:
            answers = vqa_loss(self.model, batch["vqa"])
            scalars["loss/vqa"] = answers.detach()
            total = total + self.vqa_weight * answers
        scalars["loss/total"] = total.detach()
        return total, scalars

    def predict(self, batch: Batch) -> VlaOutput:
        """Run the model from pixels, or from cached features where the batch has them."""
        tokens = batch.get("action_tokens")
        texts = (batch["input_ids"], batch["attention_mask"], batch.get("state"))
        texts += (batch.get("committed"), batch.get("committed_mask"))
        output: VlaOutput
        if "vision_features" in batch:
            output = self.model.forward_from_features(
                batch["vision_features"], *texts, action_tokens=tokens
            )
        else:
            output = self.model(batch["pixel_values"], *texts, action_tokens=tokens)
        return output

    def _action_losses(self, output: VlaOutput, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Loss of the single actions, and of their sums where it counts."""
        if output.actions is None:
            return self._token_loss(output, batch), None
        plan = output.actions, batch["actions"], self._left_out(output.actions, batch)
        action = chunk_l1_loss(*plan, self.dim_weights)
        return action, displacement_l1_loss(*plan) if self.weights.displacement > 0.0 else None

    def _left_out(self, actions: Tensor, batch: Batch) -> Tensor | None:
        """(B, H) bool: steps past the episode's end, and those that were told."""
        left_out: Tensor | None = batch.get("is_pad")
        told = batch.get("committed_mask")
        if told is None:
            return left_out
        decided = nn.functional.pad(told.bool(), (0, actions.shape[1] - told.shape[1]))
        return decided if left_out is None else left_out | decided

    def _token_loss(self, output: VlaOutput, batch: Batch) -> Tensor:
        if output.logits is None or "action_tokens" not in batch:
            raise TrainingError(
                "There are no action tokens to learn",
                got=f"batch keys {sorted(batch)}",
                expected="action_tokens (B, 7) int64",
                fix="let the data loader encode the actions",
            )
        logits = output.logits.float().flatten(0, 1)
        return nn.functional.cross_entropy(logits, batch["action_tokens"].flatten())


def grounding_targets(points: Tensor, grid: int, sigma: float) -> Tensor:
    """Soft targets (B, K, grid * grid) for points (B, K, 2) given as fractions of width and height.

    A Gaussian of `sigma` patches that sums to 1; all zero for a point outside the picture.
    """
    centres = (torch.arange(grid, dtype=torch.float32) + 0.5) / grid
    spread = sigma / grid
    x = torch.exp(-0.5 * ((centres - points[..., :1]) / spread) ** 2)
    y = torch.exp(-0.5 * ((centres - points[..., 1:]) / spread) ** 2)
    maps = (y.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)
    inside = ((points >= 0.0) & (points <= 1.0)).all(-1, keepdim=True)
    return torch.where(inside, maps / maps.sum(-1, keepdim=True).clamp(min=1e-12), 0.0)
