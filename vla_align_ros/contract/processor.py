"""Observation to model inputs, model outputs to actions: one path for training, proof, robot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_align_ros.contract.files import (
    read_json_object,
    readable_json,
    require_keys,
    write_durably,
)
from vla_align_ros.contract.images import Float32Array, ImageTransform
from vla_align_ros.contract.normalize import (
    Normalizer,
    load_statistics,
    save_statistics,
    select_statistics,
)
from vla_align_ros.contract.observation import ActionChunk, Observation
from vla_align_ros.contract.prompt import PromptTokenizer
from vla_align_ros.contract.spec import ACTION_DIM, PolicySpec, TensorSpec
from vla_align_ros.errors import ContractError, NonFiniteError, NormalizationError

__all__ = ["PROCESSOR_FILES", "ActionChunk", "Observation", "Processor"]

SCHEMA_VERSION = 1
PROCESSOR_FILES = ("processor.json", "stats.json", "tokenizer/tokenizer.json")
_GRIPPER = ACTION_DIM - 1


class Processor:
    """Holds all that turns raw observations into model inputs and model outputs into motion.

    Args:
        spec: of the policy.
        image_transform: for every camera.
        normalizers: "action" always, "state" exactly if the spec has a state.
        tokenizer: for the instruction.

    Raises:
        NormalizationError: if a key is missing, superfluous, or of the wrong dimension.
    """

    def __init__(
        self,
        spec: PolicySpec,
        image_transform: ImageTransform,
        normalizers: Mapping[str, Normalizer],
        tokenizer: PromptTokenizer,
    ) -> None:
        wanted = {"action": spec.action.dim}
        if spec.state is not None:
            wanted["state"] = spec.state.dim
        got = {key: normalizer.statistics.dim for key, normalizer in normalizers.items()}
        if got != wanted:
            raise NormalizationError(
                "normalisation does not fit the policy",
                got=got,
                expected=wanted,
                fix="give one Normalizer for each of these keys and dimensions",
            )
        self.spec = spec
        self.image_transform = image_transform
        self.normalizers = dict(normalizers)
        self.tokenizer = tokenizer

    def prepare(self, observation: Observation) -> dict[str, npt.NDArray[Any]]:
        """Turn an observation into the model's inputs, a batch of one.

        Returns:
            "pixel_values" float32 (1, C, S, S), or (1, cameras, C, S, S) for several, in the
            spec's order; "input_ids" and "attention_mask" int64 (1, T); "state" float32 (1, D),
            normalised, if the spec has one; "committed" float32 (1, C, 7) and "committed_mask"
            int64 (1, C), as `prepare_committed` gives them, if the policy takes such.

        Raises:
            ContractError: if a camera or the state is missing or wrong, the text is refused, or
            more actions are committed than the policy takes.
        """
        ids, mask = self.tokenizer.encode(observation.instruction)
        inputs: dict[str, npt.NDArray[Any]] = {
            "pixel_values": self._prepare_pixels(observation),
            "input_ids": ids[None],
            "attention_mask": mask[None],
        }
        if self.spec.state is not None:
            if observation.state is None:
                raise ContractError(
                    "observation has no state", got=None, expected=self.spec.state.names
                )
            inputs["state"] = self.prepare_state(observation.state)[None]
        if self.spec.action.committed or observation.committed is not None:
            inputs |= self._prepare_told(observation.committed)
        return inputs

    def prepare_image(self, image: npt.ArrayLike) -> Float32Array:
        """Turn one (H, W, 3) uint8 RGB picture into (C, S, S) float32."""
        return self.image_transform(image)

    def prepare_state(self, state: npt.ArrayLike) -> Float32Array:
        """Normalise states (..., D) in their own units to float32."""
        if "state" not in self.normalizers:
            raise ContractError(
                "policy reads no state", got="a state", expected="none", fix="leave it out"
            )
        return self.normalizers["state"].normalize(state).astype(np.float32)

    def prepare_committed(
        self, actions: npt.ArrayLike, counts: npt.ArrayLike
    ) -> dict[str, npt.NDArray[Any]]:
        """Turn the first C actions (B, C, 7) of chunks into inputs that tell some of them.

        Returns:
            "committed" float32 (B, C, 7), normalised, zero where nothing is told;
            "committed_mask" int64 (B, C), 1 at the first `counts` (B,) of each.
        """
        told = np.arange(self.spec.action.committed) < np.asarray(counts)[:, None]
        encoded = np.where(told[..., None], self.encode_actions(actions), np.float32(0.0))
        return {"committed": encoded, "committed_mask": told.astype(np.int64)}

    def encode_actions(self, actions: npt.ArrayLike) -> Float32Array:
        """Normalise actions (..., 7) in metres, radians, gripper fraction to float32, to train."""
        return self.normalizers["action"].normalize(actions).astype(np.float32)

    def decode(
        self, outputs: Mapping[str, npt.NDArray[Any]], observation: Observation
    ) -> ActionChunk:
        """Turn a model's outputs into a chunk of actions.

        Args:
            outputs: "actions" (1, H, 7), normalised. observation: to which they answer.

        Returns:
            Actions in metres and radians, with the gripper clipped to [0, 1].

        Raises:
            ContractError: if "actions" is missing or has another shape.
            NonFiniteError: if one is NaN or infinite.
        """
        if "actions" not in outputs:
            raise ContractError(
                "model gave no actions", got=sorted(outputs), expected="the output 'actions'"
            )
        actions = np.asarray(outputs["actions"])
        shape = (1, self.spec.action.horizon, self.spec.action.dim)
        if actions.shape != shape or actions.dtype.kind != "f":
            raise ContractError(
                "model's actions have the wrong form",
                got=f"{actions.dtype} {actions.shape}",
                expected=f"float {shape}",
            )
        if not np.isfinite(actions).all():
            raise NonFiniteError(
                "model's actions are not finite",
                got=np.array2string(actions[0], threshold=16),
                expected="finite numbers",
                fix="do not execute them; verify the bundle",
            )
        metric = self.normalizers["action"].denormalize(actions[0])
        metric[:, _GRIPPER] = np.clip(metric[:, _GRIPPER], 0.0, 1.0)
        return ActionChunk(
            metric, self.spec.action.period_s, observation.stamp_s, observation.instruction
        )

    def input_tensors(self) -> tuple[TensorSpec, ...]:
        """Return name, dtype and shape of every tensor that ``prepare`` gives."""
        size, length = self.image_transform.size, self.tokenizer.max_length
        cameras = (len(self.spec.cameras),) if len(self.spec.cameras) > 1 else ()
        tensors = [
            TensorSpec(
                "pixel_values", "float32", (1, *cameras, self.image_transform.channels, size, size)
            ),
            TensorSpec("input_ids", "int64", (1, length)),
            TensorSpec("attention_mask", "int64", (1, length)),
        ]
        if self.spec.state is not None:
            tensors.append(TensorSpec("state", "float32", (1, self.spec.state.dim)))
        if count := self.spec.action.committed:
            tensors.append(TensorSpec("committed", "float32", (1, count, self.spec.action.dim)))
            tensors.append(TensorSpec("committed_mask", "int64", (1, count)))
        return tuple(tensors)

    def output_tensors(self) -> tuple[TensorSpec, ...]:
        """Return name, dtype and shape of every tensor that ``decode`` reads."""
        return (
            TensorSpec("actions", "float32", (1, self.spec.action.horizon, self.spec.action.dim)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, without statistics and tokenizer, which have files of their own."""
        return {
            "schema_version": SCHEMA_VERSION,
            "spec": self.spec.to_dict(),
            "image_transform": self.image_transform.to_dict(),
            "normalization": {
                key: value.to_dict() for key, value in sorted(self.normalizers.items())
            },
            "prompt": self.tokenizer.to_dict(),
        }

    def save(self, folder: Path | str) -> None:
        """Write ``PROCESSOR_FILES`` into a folder, which is made if need be."""
        root = Path(folder)
        (root / "tokenizer").mkdir(parents=True, exist_ok=True)
        write_durably(root / "processor.json", readable_json(self.to_dict()))
        save_statistics(
            root / "stats.json", {key: value.statistics for key, value in self.normalizers.items()}
        )
        write_durably(root / "tokenizer" / "tokenizer.json", self.tokenizer.content)

    @classmethod
    def load(cls, folder: Path | str) -> Processor:
        """Read what ``save`` wrote; ContractError if a file or a part of it cannot be used."""
        root = Path(folder)
        names = ("schema_version", "spec", "image_transform", "normalization", "prompt")
        data = require_keys(read_json_object(root / "processor.json"), names, "processor")
        if data["schema_version"] != SCHEMA_VERSION:
            raise ContractError(
                "processor has another schema",
                got=data["schema_version"],
                expected=SCHEMA_VERSION,
                fix="export it with this version of vla_align_ros",
            )
        statistics = load_statistics(root / "stats.json")
        modes = data["normalization"]
        if not isinstance(modes, Mapping) or set(modes) != set(statistics):
            raise NormalizationError(
                "statistics do not fit the processor",
                got=sorted(statistics),
                expected=sorted(modes) if isinstance(modes, Mapping) else "an object",
            )
        return cls(
            spec=PolicySpec.from_dict(data["spec"]),
            image_transform=ImageTransform.from_dict(data["image_transform"]),
            normalizers={
                key: Normalizer.from_dict(mode, select_statistics(statistics, key))
                for key, mode in modes.items()
            },
            tokenizer=PromptTokenizer.from_dict(
                data["prompt"], root / "tokenizer" / "tokenizer.json"
            ),
        )

    def _prepare_told(
        self, committed: npt.NDArray[np.float64] | None
    ) -> dict[str, npt.NDArray[Any]]:
        action = self.spec.action
        count = 0 if committed is None else len(committed)
        if count > action.committed:
            raise ContractError(
                "more actions are committed than the policy takes",
                got=f"{count} actions",
                expected=f"up to {action.committed}",
                fix="train it with model.head.committed, or leave them out",
            )
        if not action.committed:
            return {}
        told = np.zeros((1, action.committed, action.dim))
        if committed is not None:
            told[0, :count] = committed
        return self.prepare_committed(told, [count])

    def _prepare_pixels(self, observation: Observation) -> Float32Array:
        names = [camera.name for camera in self.spec.cameras]
        missing = [name for name in names if name not in observation.images]
        if missing:
            raise ContractError(
                "observation lacks a camera",
                got=sorted(observation.images),
                expected=names,
                fix=f"connect {', '.join(missing)}",
            )
        pixels = np.stack([self.prepare_image(observation.images[name]) for name in names])
        return pixels if len(names) == 1 else pixels[None]
