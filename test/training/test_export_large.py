"""A policy of 300 million parameters is exported for real, in less memory than it weighs."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("onnxscript", reason="needs the extra [export]")

from tiny_export import make_run
from tiny_models import build, tiny_config, tiny_llm

from training.export.proof import check_parity, run_graphs
from training.export.source import RunSource, reference_outputs
from vla_align_ros.contract.graphs import GraphSpec

LAYERS, WIDTH = 19, 1024

WRITE = """
import json, re, sys, threading, time
from pathlib import Path
from training.export.source import RunSource

peak = 0

def watch():
    # Pages of the checkpoint that are mapped do not count: the kernel drops them when it must.
    global peak
    while True:
        text = Path("/proc/self/status").read_text()
        peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+) kB", text).group(1)))
        time.sleep(0.01)

threading.Thread(target=watch, daemon=True).start()
specs = RunSource.open(Path(sys.argv[1])).write_graphs(Path(sys.argv[2]), split_vision=False)
print(json.dumps({"peak_gb": peak * 1024 / 1e9, "specs": [spec.to_dict() for spec in specs]}))
"""


@pytest.mark.slow
def test_300_million_parameters_are_exported_tensor_by_tensor(tmp_path):
    llm = tiny_llm(
        LAYERS,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_attention_heads=16,
        num_key_value_heads=16,
    )
    model = build(tiny_config(llm=llm))
    size_gb = 4 * sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert size_gb > 1.2
    run = make_run(tmp_path / "run", model=model)
    del model
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(run), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    specs = (GraphSpec.from_dict("policy", found["specs"][0]),)
    beside = tmp_path / "policy.onnx.data"
    assert beside.stat().st_size > 1.2e9 and (tmp_path / "policy.onnx").stat().st_size < 1e7
    assert found["peak_gb"] < size_gb, "torch itself takes half a GB of it"

    whole = RunSource.open(run)
    one = {name: values[:1] for name, values in whole.inputs.items()}
    source = RunSource(run, whole.processor, one, whole.weights)
    actions = run_graphs(specs, tmp_path, source.samples())
    reference = reference_outputs(source)["actions"]
    assert check_parity(actions, reference) < 1e-4 and np.ptp(reference) > 1e-3
