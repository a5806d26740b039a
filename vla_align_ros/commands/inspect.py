"""`vla-align inspect`: say in one screen what a bundle holds, after checking every hash."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.errors import BundleError
from vla_align_ros.runtime.proofs import DEVICE, read_proofs
from vla_align_ros.runtime.table import is_proved

SUMMARY = "check a bundle's hashes and print what it sees, does and comes from"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the bundle."""
    parser.add_argument("bundle", type=Path, help="folder of the bundle")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Print the manifest for people; return it with the report.

    Raises:
        BundleError: if the bundle is refused.
    """
    bundle = Bundle.open(args.bundle)
    report = bundle.report()
    for title, lines in describe_bundle(bundle, report).items():
        print(title)
        for line in lines:
            print(f"  {make_printable(line)}")
    return {"bundle_id": bundle.id, "manifest": dict(bundle.manifest), "report": report}


def describe_bundle(bundle: Bundle, report: dict[str, Any]) -> dict[str, list[str]]:
    """Return headed lines of text that describe a bundle and its proof."""
    spec, transform = bundle.spec, bundle.processor.image_transform
    action = spec.action
    sees = [f"camera {camera.name}: {camera.width}x{camera.height}" for camera in spec.cameras]
    sees.append(f"each to {transform.size}x{transform.size}, {transform.channels} channels")
    if spec.state is not None:
        sees.append(f"state: {', '.join(spec.state.names)}")
    sees.append(f"words: {bundle.processor.tokenizer.template.text!r}")
    does = [
        f"{action.horizon} actions of {', '.join(action.names)}",
        f"at {action.rate_hz:g} Hz in {action.frame} (m, rad, gripper 0 closed to 1 open)",
    ]
    if action.committed:
        does.append(f"goes on from up to {action.committed} committed actions")
    does += [f"no more than {name} {value:g}" for name, value in sorted(bundle.limits.items())]
    modes = [f"{key}: {value.mode}" for key, value in sorted(bundle.processor.normalizers.items())]
    files = bundle.manifest["files"]
    width = max(map(len, files))
    total_mb = sum(entry["bytes"] for entry in files.values()) / 1e6
    return {
        f"bundle {bundle.id} ({total_mb:.1f} MB)": [f"spec {spec.fingerprint()[:12]}"],
        "sees": sees,
        "does": does,
        "normalisation": modes,
        "comes from": _describe_tree(bundle.manifest["provenance"]),
        "files": [
            f"{name:{width}} {entry['bytes']:>10} bytes  sha256 {entry['sha256'][:12]}"
            for name, entry in sorted(files.items())
        ],
        "proof": [_describe_proof(proof) for proof in _find_proofs(report)],
        **({"engines": engines} if (engines := _describe_engines(bundle)) else {}),
    }


def make_printable(text: str) -> str:
    """Text of somebody's bundle, with what a terminal would obey or cannot show written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _find_proofs(report: dict[str, Any]) -> list[dict[str, Any] | None]:
    return list(read_proofs(report).values()) or [None]


def _describe_engines(bundle: Bundle) -> list[str]:
    """One line a target: what it is, and whether it was proved on such a GPU; or why it is none."""
    lines = []
    for target in bundle.engine_targets():
        try:
            engines = bundle.engine(target)
        except BundleError as refusal:  # of the engines, which the bundle does without
            lines.append(f"{target}: REFUSED: {refusal}")
            continue
        made = f"{engines.facts['library']} {engines.facts['library_version']}"
        verdict = "proved" if is_proved(engines.gates.get(DEVICE, {})) else "not proved on a GPU"
        lines.append(f"{target}: {engines.facts['scheme']}, {made}, {verdict}")
    return lines


def _describe_tree(value: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key, item in sorted(value.items()):
        if isinstance(item, dict):
            lines += _describe_tree(item, f"{prefix}{key}.")
        else:
            lines.append(f"{prefix}{key}: {item}")
    return lines


def _describe_proof(proof: dict[str, Any] | None) -> str:
    if proof is None:
        return "none; run `vla-align verify`"
    verdict = "proved" if is_proved(proof) else "REFUSED"
    place = f"; {proof['runs_on']}" if "runs_on" in proof else ""
    how = f"{proof.get('backend')}, {proof.get('precision')}{place}"
    return f"{verdict} on {proof.get('samples')} samples ({how})"
