"""The typed configuration of a run: recipes return it, `--set` changes it, a run saves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from training.adapters import AdapterConfig
from training.alignment.config import AlignmentConfig
from training.alignment.teachers import TeacherConfig
from training.data.config import DataConfig
from training.memory import MemoryConfig
from training.model.config import VlaConfig
from training.optimizers import OptimConfig
from training.parallel import ParallelConfig
from training.settings import LATER, rebuild, store
from training.sight.config import WatchConfig
from training.vqa import VqaConfig
from vla_align_ros.errors import ConfigurationError

HOW_IT_RUNS = (
    *("parallel", "memory", "watch", "threads", "evaluate_every", "checkpoint_every"),
    *("data.workers", "data.decode_cache_gb"),
)
"""Settings, or parts with all of theirs, that do not decide what a run learns: it goes on with
others, on another machine for instance."""


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Weights beside the action loss.

    grounding: of the auxiliary cross-entropy that makes the prompt point at the named object and
    receptacle (labels from the simulator; 0 without labels). grounding_sigma: width of the target
    in patches. gripper: weight of the gripper within the L1 of an action, relative to the others.
    tokens: of the cross-entropy of action tokens that an insulated backbone learns beside the chunk
    head (model.head.insulate). displacement: of the L1 of the actions' running sums, that is of
    where the arm would be after each step of a chunk (normalised units, without the gripper);
    it helps where most steps of the demonstrations hardly move.
    """

    grounding: float = 0.0
    grounding_sigma: float = 0.6
    gripper: float = 1.0
    tokens: float = 0.0
    displacement: float = field(default=0.0, metadata=LATER)

    def __post_init__(self) -> None:
        """Refuse what a loss would be maximised by."""
        for name in ("grounding", "gripper", "tokens", "displacement"):
            _check(f"loss.{name}", getattr(self, name), getattr(self, name) >= 0.0, "0 or more")
        sigma = self.grounding_sigma
        _check("loss.grounding_sigma", sigma, sigma > 0.0, "a number above 0")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """A whole training run. `recipe` is the name of the function that made it.

    base: what to start from: an OpenVLA checkpoint, folder or hub repository, or a finished run's
    folder; `model` is then read from it. vqa: questions about pictures to learn beside, None for
    none.
    """

    recipe: str
    model: VlaConfig
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    vqa: VqaConfig | None = None
    base: str | None = None
    seed: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    threads: int = 0
    evaluate_every: int = 500
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        """Check what the loop cannot run with."""
        least_of = {"evaluate_every": 1, "checkpoint_every": 1, "threads": 0, "seed": 0}
        for name, least in least_of.items():
            value = getattr(self, name)
            _check(name, value, value >= least, f"{least} or more")

    def check(self) -> None:
        """Refuse losses that reach nothing, and parts that no loss reaches; before a run.

        `warnings` tells what may be meant.
        """
        head, loss, optim = self.model.head, self.loss, self.optim
        others = (self.alignment.weight, loss.grounding, loss.tokens, self.vqa is not None)
        aligned = self.alignment.weight > 0.0
        still = not optim.vision_lr  # whatever the adapter says of the tower
        late = self._stays_late
        rate = "null" if optim.vision_lr is None else optim.vision_lr
        begins = f"optim.vision_from_step {optim.vision_from_step} of {optim.steps} steps"
        unreached, idle = "A loss would reach nothing", "Nothing would learn"
        for title, wrong, got, expected, fix in (
            (
                unreached,
                loss.tokens > 0.0 and not head.insulate,
                f"loss.tokens {loss.tokens} without model.head.insulate",
                "an insulated head, whose backbone learns from tokens",
                "--set model.head.insulate=true, or loss.tokens=0",
            ),
            (
                unreached,
                loss.displacement > 0.0 and head.kind != "chunk",
                f"loss.displacement {loss.displacement} with model.head.kind {head.kind}",
                "a chunk head, whose steps add up to a movement",
                "--set loss.displacement=0, or model.head.kind=chunk",
            ),
            (
                unreached,
                loss.grounding > 0.0 and self.model.grounding is None,
                f"loss.grounding {loss.grounding} without model.grounding",
                "a grounding head, whose heat maps the loss is of",
                "--set loss.grounding=0, or take a recipe with model.grounding",
            ),
            (
                idle,
                head.insulate and not any(others),
                "model.head.insulate and no other loss",
                "vqa, loss.tokens, alignment or grounding: the backbone learns from nothing else",
                "--set loss.tokens=1",
            ),
            (
                "The alignment would move nothing",
                aligned and self.alignment.at == "encoder" and (still or late),
                f"alignment.at encoder with {begins if late else f'optim.vision_lr {rate}'}",
                "an encoder that trains",
                "give optim.vision_lr a value and let the tower go before the last step, or --set"
                " alignment.at=llm",
            ),
        ):
            if wrong:
                raise ConfigurationError(title, got=got, expected=expected, fix=fix)

    def warnings(self) -> tuple[str, ...]:
        """What a run does that its settings may not have meant, a sentence each."""
        optim, told = self.optim, list[str]()
        if self.alignment.weight > 0.0 and self._stays_late:
            told.append(
                f"optim.vision_from_step {optim.vision_from_step} of {optim.steps} steps: the"
                f" vision tower never trains in spite of optim.vision_lr {optim.vision_lr}"
            )
        if optim.warmup_steps > optim.steps:
            told.append(
                f"optim.warmup_steps {optim.warmup_steps} of {optim.steps} steps: the rate rises to"
                f" {optim.steps / optim.warmup_steps:.0%} of optim.lr {optim.lr:g} and no further"
            )
        return tuple(told)

    @property
    def _stays_late(self) -> bool:
        """Whether the vision tower has a rate and is never let go."""
        return bool(self.optim.vision_lr) and self.optim.vision_from_step >= self.optim.steps

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dict, without settings that came later and have their default: `store`."""
        return store(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunConfig:
        """Rebuild from `to_dict`; what does not fit is a ConfigurationError."""
        try:
            return rebuild(cls, data)
        except ValueError as error:
            raise ConfigurationError(
                "The saved configuration does not fit this version",
                got=str(error),
                expected="the keys that RunConfig.to_dict writes",
                fix="resume with the version that started the run",
            ) from error


def _check(name: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise ConfigurationError(
            f"Wrong value for {name}", got=value, expected=expected, fix="correct --set"
        )
