"""Tensor names: ours to those that OpenVLA's checkpoints use, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from vla_align_ros.errors import TrainingError

TOWERS = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
"""Published prefixes of the first and the second vision tower."""

_TO_PUBLISHED = {
    "vision.0.backbone.": TOWERS[0],
    "vision.1.backbone.": TOWERS[1],
    "projector.": "projector.",
    "llm.": "language_model.",
}
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module)\.")
_OUR_SCALE = re.compile(r"\.(ls[12])\.gamma$")
_THEIR_SCALE = re.compile(r"\.(ls[12])\.scale_factor$")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def to_published(name: str) -> str:
    """Rename one of PrismaticVLA's tensors (or modules); TrainingError if OpenVLA has none such."""
    name = _WRAPPERS.sub("", name)
    for ours, theirs in _TO_PUBLISHED.items():
        if name.startswith(ours):
            return _OUR_SCALE.sub(r".\1.scale_factor", theirs + name[len(ours) :])
    raise TrainingError(
        "a tensor has no place in an OpenVLA checkpoint",
        got=name,
        expected="vision towers, projector and language model alone",
        fix="save the model with PrismaticVLA.save, or train it with the tokens head, no state",
    )


def to_ours(name: str) -> str:
    """Rename a published tensor to PrismaticVLA's; names that it lacks come back with their rest.

    A name with none of the published prefixes comes back as it is.
    """
    for ours, theirs in _TO_PUBLISHED.items():
        if name.startswith(theirs):
            return _THEIR_SCALE.sub(r".\1.gamma", ours + name[len(theirs) :])
    return name


def tower_depth(names: Iterable[str], prefix: str) -> int:
    """Count the blocks of the tower under a published prefix (0: there is no such tower)."""
    found = (_BLOCK.match(name[len(prefix) :]) for name in names if name.startswith(prefix))
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def find_carried(names: Iterable[str]) -> set[str]:
    """Return the published tensors that no sum of OpenVLA's reads.

    OpenVLA takes each tower's second-to-last block; the last block, the final norm and SigLIP's
    pooling head come with the checkpoint all the same. They are left out of PrismaticVLA (they
    would get no gradient) and carried from checkpoint to checkpoint unchanged.
    """
    names = list(names)
    carried: set[str] = set()
    for prefix in TOWERS:
        last = f"{prefix}blocks.{tower_depth(names, prefix) - 1}."
        unused = (last, f"{prefix}norm.", f"{prefix}attn_pool.")
        carried.update(name for name in names if name.startswith(unused))
    return carried


def compare_tensors(
    model: Mapping[str, tuple[int, ...]], checkpoint: Mapping[str, tuple[int, ...]]
) -> dict[str, list[str]]:
    """Compare published names and shapes of a model with a checkpoint's.

    Returns:
        "missing_keys": the model's that the checkpoint lacks; "unexpected_keys": the checkpoint's
        that neither the model has nor OpenVLA leaves unused; "mismatched_shapes".
    """
    carried = find_carried(checkpoint)
    return {
        "missing_keys": sorted(set(model) - set(checkpoint)),
        "unexpected_keys": sorted(set(checkpoint) - set(model) - carried),
        "mismatched_shapes": sorted(
            f"{name}: {tuple(checkpoint[name])} in the checkpoint, {tuple(shape)} in the model"
            for name, shape in model.items()
            if name in checkpoint and tuple(checkpoint[name]) != tuple(shape)
        ),
    }
