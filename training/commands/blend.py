"""`vla-align blend`: interpolate the weights of two checkpoints."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from vla_align_ros.errors import ConfigurationError

SUMMARY = "interpolate the weights of two checkpoints, such as before and after fine-tuning"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    either = "finished run or OpenVLA checkpoint: alpha"
    parser.add_argument("before", help=f"{either} 0, usually the pretrained one")
    parser.add_argument("after", help=f"{either} 1, usually the fine-tuned one")
    parser.add_argument("--out", required=True, help="folder of the blend; must not exist")
    parser.add_argument("--alpha", type=float, default=0.5, help="share of AFTER, 0 to 1 (0.5)")
    parser.add_argument(
        "--part",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=SHARE",
        help="another share for vision, projector, llm, state, head or grounding: vision=0.2",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Blend and return what was done."""
    parts = dict(_read_part(text) for text in args.part)
    from training.blend import blend

    result = blend(args.before, args.after, args.out, args.alpha, parts=parts)
    print(
        f"{result['out']}: {result['tensors']} tensors, {result['parameters']:,} values, "
        f"RMS distance of the two {result['distance']:.3g}"
    )
    if result["differences"]:
        told = ", ".join(result["differences"])
        print(f"not the same in the two, and AFTER's in the blend: {told}", file=sys.stderr)
    return result


def _read_part(text: str) -> tuple[str, float]:
    name, separator, share = text.partition("=")
    try:
        value = float(share)
    except ValueError:
        separator = ""
        value = 0.0
    if not separator:
        raise ConfigurationError(
            "Not a share", got=repr(text), expected="NAME=SHARE, such as vision=0.2", fix="--part"
        )
    return name, value
