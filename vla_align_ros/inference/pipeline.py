"""Several graphs behind the seam of one: a policy whose vision, prefill and decoding are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.engines import LIBRARIES
from vla_align_ros.contract.graphs import GraphSpec
from vla_align_ros.contract.spec import ACTION_DIM, TensorSpec
from vla_align_ros.errors import BackendError
from vla_align_ros.inference.base import (
    WHOLE,
    Backend,
    check_graph,
    check_inputs,
    name_place,
    open_backend,
)

Arrays = dict[str, npt.NDArray[Any]]


class GraphPipeline:
    """Runs a policy's graphs in order; a token policy's last graph once for each further action.

    The cache stays in one pair of arrays: a decoding step adds one row to each.

    Args:
        specs: of the graphs that act, in order (see ``contract.graphs``). backends: an open engine
            for each, owned from now on.

    Raises:
        BackendError: if an engine's tensors are not those of its graph.
    """

    def __init__(self, specs: Sequence[GraphSpec], backends: Mapping[str, Backend]) -> None:
        for spec in specs:
            engine = backends[spec.name]
            if engine.inputs:
                check_graph(engine.inputs, spec.inputs, "input", exact=True)
            if engine.outputs:
                check_graph(engine.outputs, spec.outputs, "output", exact=False)
        self._specs = tuple(specs)
        self._backends = dict(backends)
        self._decodes = specs[-1].name == "decode"
        first = next(iter(backends.values()))
        self.name = first.name
        self.precision = getattr(first, "precision", "fp32")
        self.runs_on = name_place(first)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What no graph of the policy gives to another: the processor's tensors."""
        found: dict[str, TensorSpec] = {}
        inner = {tensor.name for spec in self._specs for tensor in spec.outputs} | {"step"}
        for spec in self._specs:
            found |= {tensor.name: tensor for tensor in spec.inputs if tensor.name not in inner}
        return tuple(found.values())

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The actions, and a token policy's tokens."""
        if not self._decodes:
            return self._specs[-1].outputs
        return (
            TensorSpec("actions", "float32", (1, 1, ACTION_DIM)),
            TensorSpec("tokens", "int64", (1, ACTION_DIM)),
        )

    def infer(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run every graph once, and the decoding as often as an action needs it."""
        check_inputs(inputs, self.inputs)
        known: Arrays = dict(inputs)
        for spec in self._specs[:-1] if self._decodes else self._specs:
            known |= self._run(spec, known)
        if not self._decodes:
            return {tensor.name: known[tensor.name] for tensor in self.outputs}
        return self._decode(known)

    def close(self) -> None:
        """Free every engine; calling it again does nothing."""
        for engine in self._backends.values():
            engine.close()

    def _run(self, spec: GraphSpec, known: Arrays) -> Arrays:
        engine = self._backends[spec.name]
        return engine.infer({tensor.name: known[tensor.name] for tensor in spec.inputs})

    def _decode(self, known: Arrays) -> Arrays:
        decode = self._specs[-1]
        tokens, actions = [known["token"]], [known["action"]]
        caches = [np.array(known["keys"]), np.array(known["values"])]  # engines' own may be fixed
        known |= {"keys": caches[0], "values": caches[1]}
        read = caches[0].shape[0] - (ACTION_DIM - 1)
        for step in range(ACTION_DIM - 1):
            known |= {"token": tokens[-1], "step": np.array([step], dtype=np.int64)}
            out = self._run(decode, known)
            caches[0][read + step], caches[1][read + step] = (
                out["new_keys"][0],
                out["new_values"][0],
            )
            tokens.append(out["next_token"])
            actions.append(out["action"])
        return {
            "actions": np.concatenate(actions, axis=1)[:, None],
            "tokens": np.concatenate(tokens, axis=1),
        }


def open_graphs(bundle: Bundle, name: str, **options: Any) -> Backend:
    """Open a bundle's acting graphs on one engine by name, as one backend.

    TensorRT runs what was compiled for this machine's GPU, all graphs on the device.
    An engine of ``WHOLE`` opens the folder instead.

    Raises:
        BackendError: as ``open_backend`` does. BundleError: if there are no engines for this GPU.
    """
    if name in LIBRARIES:
        from vla_align_ros.inference.tensorrt.opening import open_engines

        return open_engines(bundle, name, **options)
    if name in WHOLE:
        return open_backend(name, bundle.path, **options)
    specs = bundle.acting_graphs
    opened: dict[str, Backend] = {}
    try:
        for spec in specs:
            opened[spec.name] = open_backend(name, bundle.graph_path(spec.name), **options)
        return opened["policy"] if len(specs) == 1 else GraphPipeline(specs, opened)
    except BackendError:
        for engine in opened.values():
            engine.close()
        raise
