"""Visual representation alignment: student tokens kept near a frozen teacher's features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.alignment.config import AlignmentConfig
from training.alignment.loss import CosineLoss, build_loss, cosine_alignment_loss
from training.alignment.projector import Projector, build_projector
from training.alignment.schedule import SCHEDULES
from training.model.output import VlaOutput
from vla_align_ros.errors import ConfigurationError

MIDDLE_LAYER_OF = 2


class Aligner(nn.Module):
    """L = L_action + lambda * L_align, with L_align summed over the aligned places.

    teacher_width: channels of the teacher's features; the teacher itself is elsewhere.
    student_width: of the LLM's hidden states, of which there are student_layers + 1. encoder_width:
    of `VlaOutput.vision_features`. `places` names what is aligned: "layer_<i>" or "encoder".

    The projectors are its whole state dict: save it with the checkpoint, drop it at export. Those
    that train are its parameters with requires_grad, for the optimizer.
    """

    def __init__(
        self,
        config: AlignmentConfig,
        teacher_width: int,
        student_width: int,
        encoder_width: int,
        student_layers: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.layers = _find_layers(config, student_layers)
        self.places = [f"layer_{layer}" for layer in self.layers] or ["encoder"]
        self.loss = build_loss(config.loss, temperature=config.temperature)
        self.projectors = nn.ModuleList(
            build_projector(
                config.projector,
                student_width if config.at == "llm" else encoder_width,
                teacher_width,
                hidden=config.hidden,
                seed=config.seed + number,
                trainable=config.trainable,
            )
            for number in range(1 if config.shared else len(self.places))
        )

    def weight_at(self, step: int, total_steps: int) -> float:
        """Lambda at `step` (from 0) of a run of `total_steps`."""
        config = self.config
        share = SCHEDULES[config.schedule](
            step, total_steps, config.schedule_steps, config.final_fraction
        )
        return config.weight * share

    def losses(self, output: VlaOutput, target: Tensor) -> list[Tensor]:
        """Return L_align of each place, float32 scalars.

        target: teacher features (B, k, teacher width) of the k visual tokens.
        """
        return [self.loss(projected, target) for projected in self._project(output)]

    def total(
        self,
        action_loss: Tensor,
        output: VlaOutput,
        target: Callable[[], Tensor] | Tensor | None,
        weight: float | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (L_action + lambda * L_align, detached scalars to log).

        target: teacher features, or a function that computes them. weight: lambda of this step, as
        `weight_at` gives it; None is the configured one. With lambda 0 it returns `action_loss`
        itself and calls nothing, so that such a run is the default run bit for bit. Scalars:
        align/cosine_<place>, and align/<loss>_<place> where another loss is minimised.
        """
        weight = self.config.weight if weight is None else weight
        if weight == 0:
            return action_loss, {}
        features = target() if callable(target) else target
        if features is None:
            raise ConfigurationError(
                got="no teacher features", expected="features, or lambda 0", fix="pass targets"
            )
        projections = self._project(output)
        losses = [self.loss(projected, features) for projected in projections]
        scalars: dict[str, Tensor] = {}
        for place, projected, loss in zip(self.places, projections, losses, strict=True):
            if isinstance(self.loss, CosineLoss):
                scalars[f"align/cosine_{place}"] = -loss.detach()
            else:
                with torch.no_grad():
                    scalars[f"align/cosine_{place}"] = -cosine_alignment_loss(projected, features)
                scalars[f"align/{self.loss.name}_{place}"] = loss.detach()
        return action_loss + weight * _total(losses), scalars

    @torch.no_grad()
    def cosines(self, output: VlaOutput, target: Tensor) -> dict[str, Tensor]:
        """Measure align/cosine_<place>, whatever the loss is, and change nothing.

        target: teacher features (B, k, teacher width).
        """
        was_training = self.training
        self.eval()
        projections = self._project(output)
        self.train(was_training)
        return {
            f"align/cosine_{place}": -cosine_alignment_loss(projected, target)
            for place, projected in zip(self.places, projections, strict=True)
        }

    def average_gradients(self) -> None:
        """Average the trained projectors' gradients over the ranks, where no wrapper does it.

        For FSDP with this module left whole (`ignored_params`); not beside
        DistributedDataParallel, which averages by itself.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return
        for parameter in self.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()

    def _project(self, output: VlaOutput) -> list[Tensor]:
        """Projected student tokens (B, k, teacher width) of each place."""
        if self.config.at == "encoder":
            tokens = [output.vision_features]
        elif output.hidden_states is None:
            raise ConfigurationError(
                got="an output without hidden states",
                expected="output_hidden_states=True",
                fix="ask the model for its hidden states while aligning",
            )
        else:
            tokens = [output.hidden_states[layer][:, output.visual] for layer in self.layers]
        return [self._projector(number)(part) for number, part in enumerate(tokens)]

    def _projector(self, place: int) -> Projector:
        projector = self.projectors[0 if self.config.shared else place]
        assert isinstance(projector, Projector)
        return projector


def _find_layers(config: AlignmentConfig, student_layers: int) -> tuple[int, ...]:
    if config.at == "encoder":
        return ()
    layers = config.layers or (student_layers // MIDDLE_LAYER_OF,)
    is_known = all(0 <= layer <= student_layers for layer in layers)
    if not is_known or len(set(layers)) < len(layers):
        raise ConfigurationError(
            got=f"alignment layers {layers}",
            expected=f"numbers from 0 to {student_layers}, each once",
            fix=f"--set alignment.layers=[{student_layers // MIDDLE_LAYER_OF}], the middle one",
        )
    return layers


def _total(losses: Sequence[Tensor]) -> Tensor:
    result = losses[0]
    for loss in losses[1:]:
        result = result + loss
    return result
