"""What is published of the networks' sight after training: rows, the plan's tests, tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from training.benchmark.figures import signed_rank_p
from training.benchmark.tables import write_head, write_row


def gather_sight(
    diagnosis: Mapping[str, Any] | None, tested: Iterable[tuple[str, str]]
) -> dict[str, Any]:
    """From a diagnosis.json, None where there is none: a row a network, and the tests.

    tested: pairs of variants, better and worse; a pair without a common training seed is left out.
    """
    rows = [] if diagnosis is None else _gather_rows(diagnosis)
    tests = [
        test
        for better, worse in tested
        for place in dict.fromkeys(place for row in rows for place in row["probe"])
        if (test := _test(rows, place, better, worse))["differences"]
    ]
    return {"sight": rows, "sight_tests": tests}


def write_probes(results: Mapping[str, Any]) -> list[str]:
    """The tables of what gather_sight found, in Markdown; none where it found nothing."""
    rows = results["sight"]
    if not rows:
        return []
    places = ("encoder", f"layer_{rows[0]['layer']}")
    lines = write_head(
        *("network", "probe, encoder", "probe, middle layer"),
        *("CKA with the start, encoder", "the same, middle layer", "CKA with the teacher, middle"),
    )
    for row in rows:
        name = row["variant"] if row["seed"] is None else f"{row['variant']}, seed {row['seed']}"
        probes = [
            f"{row['probe'][p]['accuracy']:.2f} "
            f"[{row['probe'][p]['interval'][0]:.2f}, {row['probe'][p]['interval'][1]:.2f}]"
            for p in places
        ]
        # Before its own training the start was no start yet.
        likenesses = [
            "-" if row["seed"] is None else f"{row['cka_before'][p]['pictures']:.2f}"
            for p in places
        ]
        taught = row["cka_teacher"].get(places[1])
        lines.append(
            write_row(name, *probes, *likenesses, "-" if taught is None else f"{taught:.2f}")
        )
    lines += ["", *write_head("probe, is better", "place", "by training seed", "p, seeds")]
    for test in results["sight_tests"]:
        by_seed = ", ".join(f"{value:+.3f}" for value in test["differences"].values())
        pair = f"{test['better']} over {test['worse']}"
        lines.append(write_row(pair, f"`{test['place']}`", by_seed, f"{test['p_repeats']:.3f}"))
    return [*lines, ""]


def _gather_rows(diagnosis: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a network after training: variant, training seed, probe and likenesses by place."""
    rows = []
    for network in diagnosis["networks"]:
        if network["when"] != "after":
            continue
        variant, _, seed = network["run"].partition("/seed_")
        rows.append(
            {
                "variant": variant.rpartition("/")[2],
                "seed": int(seed) if seed else None,
                "layer": network["layer"],
                **{key: network[key] for key in ("probe", "cka_before", "cka_teacher")},
            }
        )
    return rows


def _test(rows: Sequence[Mapping[str, Any]], place: str, better: str, worse: str) -> dict[str, Any]:
    """Differences of the probe's accuracy by training seed, and the plan's test of them."""
    found: dict[str, dict[int, float]] = {better: {}, worse: {}}
    for row in rows:
        if row["variant"] in found and row["seed"] is not None:
            found[row["variant"]][row["seed"]] = row["probe"][place]["accuracy"]
    seeds = sorted(found[better].keys() & found[worse].keys())
    differences = {str(seed): found[better][seed] - found[worse][seed] for seed in seeds}
    return {
        "place": place,
        "better": better,
        "worse": worse,
        "differences": differences,
        "p_repeats": signed_rank_p(list(differences.values())),
    }
