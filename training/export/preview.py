"""A look at an export before its weights are touched: graphs, sizes, and the memory it takes."""

from __future__ import annotations

import resource
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vla_align_ros.contract.processor import Processor


def preview_export(
    run: str | Path, *, split_vision: bool = False, only: Collection[str] | None = None
) -> dict[str, Any]:
    """Trace the graphs of a run's network without its weights.

    Args:
        run: folder with model.json or openvla/, and processor/; weights in model.safetensors need
            not be there.
        split_vision: as `export_run` has it. only: names of graphs; by default all.

    Returns:
        {"graphs": {name: {"nodes", "weight_bytes" (float32), "inputs", "outputs"}},
        "peak_rss_gb": of this process so far}.
    """
    import torch

    from training.export.graphs import plan_graphs
    from training.export.source import PROCESSOR
    from training.export.trace import trace_graph
    from training.run_weights import RunWeights

    folder = Path(run)
    model = RunWeights.find(folder).build_empty()
    shapes = {f"model.{name}": tensor.shape for name, tensor in model.state_dict().items()}
    graphs = {}
    for graph in plan_graphs(model, Processor.load(folder / PROCESSOR), split_vision=split_vision):
        if only is not None and graph.spec.name not in only:
            continue
        traced = trace_graph(
            graph.module,
            graph.spec.inputs,
            graph.spec.outputs,
            lambda name: torch.rand(shapes[name]),  # only small ones are folded, and so looked at
        )
        held = (value.const_value for value in traced.graph.initializers.values())
        graphs[graph.spec.name] = {
            "nodes": len(traced.graph),
            "weight_bytes": sum(tensor.nbytes for tensor in held),
            **graph.spec.to_dict(),
        }
    return {"ok": True, "graphs": graphs, "peak_rss_gb": read_peak_memory() / 1e9}


def read_peak_memory() -> int:
    """Return the most bytes that this process held in memory at once.

    Linux's `ru_maxrss` begins with what the parent held when it started this process; VmHWM does
    not.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
