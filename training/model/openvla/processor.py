"""What goes into OpenVLA and what comes out, as our Processor: pictures, prompt, statistics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.model.openvla.files import CONFIG, PREPROCESSOR, STATISTICS, read_document
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.contract.normalize import Normalizer, Statistics
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.prompt import OPENVLA_PROMPT, PromptTemplate, PromptTokenizer
from vla_align_ros.contract.spec import ActionSpec, CameraSpec, PolicySpec
from vla_align_ros.errors import ConfigurationError

EMPTY_TOKEN_PROMPT = f"{OPENVLA_PROMPT} "
"""The blank at the end becomes Llama's token 29871, which stood between "Out:" and the action
tokens in training; the published code appends it by its number."""

V01_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: What action should the "
    "robot take to {instruction}? ASSISTANT: "
)
"""Of OpenVLA v0.1, whose language model is Vicuna."""

_STATISTICS = ("q01", "q99", "mean", "std", "min", "max")
_PILLOW_FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}


def build_openvla_processor(
    folder: Path,
    unnorm_key: str | None = None,
    *,
    camera: CameraSpec | None = None,
    frame: str = "base_link",
    rate_hz: float = 5.0,
    crop: float = 1.0,
    max_length: int = 64,
) -> Processor:
    """Build the processor of a checkpoint for one of its data sets.

    Args:
        folder: the checkpoint's.
        unnorm_key: the data set whose statistics un-normalise actions; may be None if there is one.
        camera: the one that the model looks through; "front", 480 x 640 px by default.
        frame: of the actions. rate_hz: of the actions; 5 Hz is that of BridgeData.
        crop: share of the area kept; 0.9 after training with random crops of that area.
        max_length: of the prompt in tokens.

    OpenVLA's rotations are roll, pitch and yaw increments, our actions rotation vectors: the two
    agree to first order in the increment (at 0.1 rad to about 0.5 %).

    Raises:
        ConfigurationError: unknown data set, or a preprocessing that is not supported.
    """
    statistics = read_statistics(read_norm_stats(folder), unnorm_key)
    spec = PolicySpec(
        cameras=(camera or CameraSpec("front", 480, 640),),
        state=None,
        action=ActionSpec(frame, rate_hz, 1),
    )
    return Processor(
        spec,
        read_image_transform(folder, crop=crop),
        {"action": Normalizer("quantile", statistics)},
        build_openvla_tokenizer(folder, max_length),
    )


def build_openvla_tokenizer(folder: Path, max_length: int = 64) -> PromptTokenizer:
    """Return the checkpoint's own tokenizer with OpenVLA's prompt around the instruction."""
    backbone = str(read_document(folder, CONFIG).get("llm_backbone_id", ""))
    template = V01_PROMPT if backbone.startswith("vicuna") else EMPTY_TOKEN_PROMPT
    return PromptTokenizer(
        folder / "tokenizer.json",
        PromptTemplate(template),
        max_length,
        bos_token="<s>",
        pad_token="<PAD>",
    )


def read_image_transform(folder: Path, *, crop: float = 1.0) -> ImageTransform:
    """Return the published preprocessing: stretch to a square, normalise once a tower.

    The file's tvf_* values count, not its means and stds: in openvla-7b the former were rounded to
    bfloat16 when it was converted, and the published processor applies them so.
    """
    document = read_document(folder, PREPROCESSOR)
    if document.get("image_resize_strategy") != "resize-naive" or document.get("tvf_do_letterbox"):
        raise _unsupported("image_resize_strategy", document.get("image_resize_strategy"))
    resizes = document.get("tvf_resize_params") or []
    sizes = {tuple(resize.get("size") or ()) for resize in resizes}
    filters = {_PILLOW_FILTERS.get(resize.get("interpolation")) for resize in resizes}
    if len(sizes) != 1 or len(filters) != 1 or None in filters:
        raise _unsupported("tvf_resize_params", resizes)
    height, width = next(iter(sizes))
    if height != width or {tuple(c["output_size"]) for c in document["tvf_crop_params"]} != sizes:
        raise _unsupported("tvf_crop_params", document["tvf_crop_params"])
    towers = [(tuple(v["mean"]), tuple(v["std"])) for v in document["tvf_normalize_params"]]
    return ImageTransform(
        size=int(height),
        mean=towers[0][0],
        std=towers[0][1],
        crop=crop,
        extra_towers=tuple(towers[1:]),
        interpolation=str(filters.pop()),
    )


def read_norm_stats(folder: Path) -> dict[str, Any]:
    """Return statistics by data set: dataset_statistics.json's, or else config.json's.

    Fine-tuning writes the former, and the published tools let it overrule the latter.
    """
    if (folder / STATISTICS).is_file():
        return read_document(folder, STATISTICS)
    return dict(read_document(folder, CONFIG).get("norm_stats") or {})


def read_statistics(norm_stats: Mapping[str, Any], unnorm_key: str | None = None) -> Statistics:
    """Return one data set's action statistics; a mask that is absent means all dimensions."""
    key = next(iter(norm_stats)) if unnorm_key is None and len(norm_stats) == 1 else unnorm_key
    if key is None or key not in norm_stats:
        raise ConfigurationError(
            "data set of the statistics is not in the checkpoint",
            got=repr(unnorm_key),
            expected=f"one of {', '.join(sorted(norm_stats))}",
            fix="name it as unnorm_key",
        )
    action = norm_stats[key].get("action", {})
    if missing := sorted(set(_STATISTICS) - set(action)):
        raise ConfigurationError(
            f"statistics of {key} are incomplete",
            got=sorted(action),
            expected=f"{', '.join(_STATISTICS)} ({', '.join(missing)} missing)",
            fix="take the checkpoint's dataset_statistics.json as it was published",
        )
    mask = action.get("mask", [True] * len(action["q01"]))
    return Statistics(**{name: action[name] for name in _STATISTICS}, mask=mask)


def write_statistics(
    statistics: Statistics, *, transitions: int, trajectories: int
) -> dict[str, Any]:
    """Return one data set's entry of norm_stats, from our statistics of its actions."""
    return {
        "action": statistics.to_dict(),
        "num_transitions": transitions,
        "num_trajectories": trajectories,
    }


def _unsupported(what: str, got: object) -> ConfigurationError:
    return ConfigurationError(
        f"{what} of this checkpoint is not supported",
        got=repr(got),
        expected='"resize-naive" to one square size, as OpenVLA was trained with',
        fix="take an OpenVLA checkpoint; its Prismatic bases letterbox their pictures",
    )
