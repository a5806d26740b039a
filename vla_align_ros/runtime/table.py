"""A proof as lines of text: what each gate measured, its limit, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def describe_proof(proof: Mapping[str, Any]) -> Iterator[str]:
    """Give the table of a proof, gate by gate, ending with the verdict.

    Args:
        proof: as ``prove_bundle`` gives it, perhaps with "behaviour" (see ``judge_pairs``) and in
            it the bundle's id of the reference, "reference_id".
    """
    yield (f"{proof['samples']} golden samples, {proof['precision']}, backend {proof['backend']}")
    yield f"  {'actions':24} {'largest':>10} {'p99':>10} {'limit':>10}"
    for name, entry in proof["dimensions"].items():
        figures = " ".join(f"{entry[key]:10.4g}" for key in ("max", "p99", "limit"))
        yield f"  {name:24} {figures} {entry['unit']:9} {_mark(entry)}".rstrip()
    numbers = proof.get("numbers")
    if numbers is not None:
        yield f"  {'numbers':24} {'error':>10} {'noise':>10} {'ratio':>10} {'limit':>10}"
        for name, row in numbers["outputs"].items():
            if "ratio" in row:
                figures = " ".join(
                    f"{row[key]:10.4g}" for key in ("error", "floor", "ratio", "limit")
                )
                yield f"  {name:24} {figures} {_mark(row)}".rstrip()
            else:
                share = f"{row['agreement']:10.4g} equal, at least {row['limit']:g}"
                yield f"  {name:24} {share} {_mark(row)}".rstrip()
    agreement = proof.get("agreement")
    if agreement is not None:
        share = f"{agreement['share']:10.4g} equal, at least {agreement['limit']:g}"
        yield f"  {'tokens':24} {share} {_mark(agreement)}".rstrip()
    behaviour = proof.get("behaviour")
    if behaviour is None:
        yield "  behaviour                not measured (--episodes N)"
    else:
        yield (
            f"  {'behaviour':24} {behaviour['candidate']} of {behaviour['episodes']} against "
            f"{behaviour['reference']} of {behaviour['reference_id'][:12]}: "
            f"{behaviour['verdict']} (p {behaviour['p']:.3g}, power "
            f"{behaviour['power']:.2f} for a drop of {behaviour['worse_by']:g})"
        )
    yield (
        "proved" if is_proved(proof) else "REFUSED: export the policy again, or in higher precision"
    )


def is_proved(proof: Mapping[str, Any]) -> bool:
    """Say whether every gate that was measured is passed; a proof without a verdict is none."""
    behaviour = proof.get("behaviour")
    if behaviour is not None and not (isinstance(behaviour, Mapping) and behaviour.get("ok")):
        return False
    return bool(proof.get("ok"))


def _mark(row: Mapping[str, Any]) -> str:
    return "" if row["ok"] else "TOO FAR"
