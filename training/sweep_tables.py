"""The paper's ablations as tables of settings, so that they can be run on any student."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.alignment.registry import find_variant
from training.model.config import LlmConfig

PAPER_DEPTH = 32  # blocks of OpenVLA's language model
SMOLLM2_DEPTH = 30  # those of the wheel's SmolLM2-135M, which only opening all of it would tell
Success = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One variant: settings on top of the recipe's, in the order in which they apply.

    paper: mean success on the Semantic, Vision and Execution axes that arXiv 2510.25616 reports for
    OpenVLA-7B, where it has this variant.
    """

    name: str
    settings: tuple[str, ...] = ()
    paper: Success | None = None


_DEFAULT_SUCCESS: Success = (0.534, 0.660, 0.333)
_ALIGN_SUCCESS: Success = (0.606, 0.724, 0.387)
_METHOD = (  # the paper's variant, whatever the recipe's
    *("alignment.layers=[]", "alignment.at=llm", "alignment.shared=false"),
    *("alignment.schedule=constant", "alignment.loss=cosine", "alignment.projector=mlp"),
    *("alignment.trainable=false", "alignment.weight=0.2"),
)
_BASELINES = (
    Row("default", ("alignment.weight=0",), _DEFAULT_SUCCESS),
    Row("align", _METHOD, _ALIGN_SUCCESS),
)


def paper_baselines(depth: int) -> tuple[Row, ...]:
    """Default, Align and Freeze."""
    return (*_BASELINES, Row("freeze", ("alignment.weight=0", "optim.vision_lr=null")))


def paper_losses(depth: int) -> tuple[Row, ...]:
    """Cosine (Align), L2 and InfoNCE."""
    return (
        *_BASELINES,
        _vary("loss l2", (0.54, 0.63, 0.34), "alignment.loss=l2"),
        _vary("loss infonce", (0.57, 0.64, 0.36), "alignment.loss=infonce"),
    )


def paper_projectors(depth: int) -> tuple[Row, ...]:
    """The frozen MLP (Align) and the six other projectors."""
    variants: tuple[tuple[str, bool, Success], ...] = (
        ("mlp", True, (0.546, 0.718, 0.350)),
        ("cosine", True, (0.580, 0.698, 0.383)),
        ("orthogonal", False, (0.556, 0.694, 0.353)),
        ("film", True, (0.568, 0.702, 0.383)),
        ("spectral", False, (0.586, 0.708, 0.397)),
        ("whitening", True, (0.566, 0.730, 0.447)),
    )
    return (
        *_BASELINES,
        *(
            _vary(
                f"projector {name}, {'trainable' if trainable else 'frozen'}",
                paper,
                f"alignment.projector={name}",
                f"alignment.trainable={json.dumps(trainable)}",
            )
            for name, trainable, paper in variants
        ),
    )


def paper_layers(depth: int) -> tuple[Row, ...]:
    """Layers and ranges of layers, scaled to a student of `depth` blocks, and the encoder.

    Layer l of the paper's 32 becomes l * depth / 32, rounded. What falls on the same layers is one
    row, named after all of them and without the paper's numbers; ranges include their ends.
    """
    places: tuple[tuple[int, int, Success], ...] = (
        (8, 8, (0.552, 0.702, 0.403)),
        (16, 16, _ALIGN_SUCCESS),
        (20, 20, (0.578, 0.734, 0.407)),
        (22, 22, (0.584, 0.692, 0.367)),
        (26, 26, (0.574, 0.736, 0.390)),
        (8, 12, (0.526, 0.682, 0.353)),
        (12, 16, (0.536, 0.710, 0.317)),
        (16, 22, (0.554, 0.676, 0.367)),
    )
    rows: dict[tuple[int, ...], Row] = {}
    for first, last, paper in places:
        layers = tuple(sorted({_scale(layer, depth) for layer in range(first, last + 1)}))
        name, numbers = f"{first}-{last}" if last > first else f"{first}", "-".join(_ends(layers))
        if depth != PAPER_DEPTH:
            name = f"{name} of {PAPER_DEPTH}"
        if layers in rows:
            rows[layers] = Row(f"{rows[layers].name}, {name}", rows[layers].settings)
            continue
        title = f"layer {name}" if depth == PAPER_DEPTH else f"layer {numbers}: {name}"
        rows[layers] = _vary(title, paper, f"alignment.layers={json.dumps(layers)}")
    encoder = _vary("encoder output", (0.55, 0.66, 0.38), "alignment.at=encoder")
    return (_BASELINES[0], *rows.values(), encoder)


def paper_lambda(depth: int) -> tuple[Row, ...]:
    """Lambda from 0 (Default) over 0.2 (Align) to 3."""
    weights: tuple[tuple[float, Success], ...] = (
        (0.5, (0.558, 0.676, 0.360)),
        (1.0, (0.570, 0.678, 0.347)),
        (2.0, (0.586, 0.702, 0.350)),
        (3.0, (0.526, 0.718, 0.357)),
    )
    varied = (
        _vary(f"lambda {weight:g}", paper, f"alignment.weight={weight:g}")
        for weight, paper in weights
    )
    return (*_BASELINES, *varied)


TABLES: dict[str, Callable[[int], tuple[Row, ...]]] = {
    table.__name__: table
    for table in (paper_baselines, paper_losses, paper_projectors, paper_layers, paper_lambda)
}


def find_table(name: str, llm: LlmConfig) -> tuple[Row, ...]:
    """Rows of the table called `name` for a student with this language model.

    Raises:
        ConfigurationError: an unknown name (the valid ones are listed), or weights of the language
            model that cannot be read.
    """
    table = find_variant(TABLES, name, "--table")
    return table(find_depth(llm) if table is paper_layers else PAPER_DEPTH)


def find_depth(llm: LlmConfig) -> int:
    """Blocks of the language model that `llm` describes; no weights are loaded."""
    from transformers import AutoConfig

    from training.model.llm import read_text_config
    from training.model.smollm import SMOLLM2

    values: dict[str, Any] = dict(llm.config or {})
    if values:
        hf = AutoConfig.for_model(values.pop("model_type"), **values).get_text_config(decoder=True)
    elif llm.pretrained == SMOLLM2:
        return SMOLLM2_DEPTH
    else:
        hf = read_text_config(str(llm.pretrained))
    return int(hf.num_hidden_layers)


def _vary(name: str, paper: Success | None, *settings: str) -> Row:
    """The paper's variant with other settings."""
    own = {setting.partition("=")[0] for setting in settings}
    kept = (setting for setting in _METHOD if setting.partition("=")[0] not in own)
    return Row(name, (*kept, *settings), paper)


def _scale(layer: int, depth: int) -> int:
    return max(1, int(layer * depth / PAPER_DEPTH + 0.5))


def _ends(layers: tuple[int, ...]) -> list[str]:
    return [str(layers[0])] if len(layers) == 1 else [str(layers[0]), str(layers[-1])]
