"""A policy small enough to predict by hand, as a real bundle around a real ONNX graph.

With m the mean of the picture (0 black .. 1 white) and s the sum of the prompt's token ids, each
step k of a chunk is: dx = 0.02 m, dy = 1e-4 s, dz = 0.01 (k + 1), no rotation, gripper m. A white
picture (m > 0.95) answers NaN; a black one (m < 0.05) moves absurdly far. With a state, dx also
gets a hundredth of the state's sum. Committed actions, where it takes them, stay in the plan.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from vla_align_ros.contract.bundle import write_bundle
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.contract.normalize import Normalizer, compute_statistics
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.prompt import PromptTemplate, PromptTokenizer
from vla_align_ros.contract.sight import SightStatistics
from vla_align_ros.contract.spec import ActionSpec, CameraSpec, PolicySpec, StateSpec
from vla_align_ros.runtime.golden import prove_bundle
from vla_align_ros.runtime.policy import Policy
from vla_align_ros.runtime.proofs import keep_proof

HORIZON = 4
RATE_HZ = 5.0
SIZE = 8
LENGTH = 12
STATE_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
VOCABULARY = ("<unk>", "<s>", "<pad>", "take", "the", "carrot", "plate", "lift")
CARROT, PLATE = "take the carrot", "lift the plate"


def predict(mean: float, instruction: str, step: int, state_sum: float = 0.0) -> np.ndarray:
    """The action (7,) of one step, as the graph computes it."""
    ids = [1, *(VOCABULARY.index(word) for word in instruction.split())]
    total = sum(ids) + 2 * (LENGTH - len(ids))
    dx, dy, dz = 0.02 * mean + 0.01 * state_sum, 1e-4 * total, 0.01 * (step + 1)
    return np.array([dx, dy, dz, 0, 0, 0, mean])


def make_tiny_processor(
    *,
    state: bool = False,
    frame: str = "base_link",
    cameras: tuple[str, ...] = ("front",),
    committed: int = 0,
) -> Processor:
    tokenizer = Tokenizer(
        WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = Whitespace()
    identity = Normalizer("identity", compute_statistics(np.random.default_rng(0).random((9, 7))))
    normalizers = {"action": identity, **({"state": identity} if state else {})}
    spec = PolicySpec(
        cameras=tuple(CameraSpec(name, 16, 16) for name in cameras),
        state=StateSpec(STATE_NAMES) if state else None,
        action=ActionSpec(frame, RATE_HZ, HORIZON, committed=committed),
    )
    prompt = PromptTokenizer(
        tokenizer.to_str().encode(), PromptTemplate("{instruction}"), max_length=LENGTH
    )
    transform = ImageTransform(SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return Processor(spec, transform, normalizers, prompt)


def write_tiny_graph(
    path: Path, *, state: bool = False, cameras: int = 1, committed: int = 0
) -> Path:
    node, tensor = helper.make_node, helper.make_tensor_value_info
    several = (cameras,) if cameras > 1 else ()
    rise = np.zeros((1, HORIZON, 7))
    rise[0, :, 2] = 0.01 * np.arange(1, HORIZON + 1)
    constants = {
        "of_mean": np.array([0.02, 0, 0, 0, 0, 0, 1]),
        "of_words": np.array([0, 1e-4, 0, 0, 0, 0, 0]),
        "of_state": np.array([0.01, 0, 0, 0, 0, 0, 0]),
        "rise": rise,
        "white": np.array(0.95),
        "black": np.array(0.05),
        "zero": np.array(0.0),
        "far": np.array([0, 0, 1e4, 0, 0, 0, 0]),
    }
    nodes = [
        node("ReduceMean", ["pixel_values"], ["mean"], keepdims=0),
        node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        node("ReduceSum", ["ids"], ["words"], keepdims=0),
        node("Mul", ["mean", "of_mean"], ["seen"]),
        node("Mul", ["words", "of_words"], ["heard"]),
        node("Sub", ["white", "mean"], ["below_white"]),
        node("Log", ["below_white"], ["log"]),
        node("Mul", ["log", "zero"], ["nan_if_white"]),
        node("Sub", ["black", "mean"], ["below_black"]),
        node("Relu", ["below_black"], ["blackness"]),
        node("Mul", ["blackness", "far"], ["absurd"]),
        node("Sum", ["rise", "seen", "heard", "nan_if_white", "absurd"], ["sum"]),
    ]
    inputs = [
        tensor("pixel_values", TensorProto.FLOAT, [1, *several, 3, SIZE, SIZE]),
        tensor("input_ids", TensorProto.INT64, [1, LENGTH]),
        tensor("attention_mask", TensorProto.INT64, [1, LENGTH]),
    ]
    if state:
        inputs.append(tensor("state", TensorProto.FLOAT, [1, len(STATE_NAMES)]))
        nodes.append(node("ReduceSum", ["state"], ["state_sum"], keepdims=0))
        nodes.append(node("Mul", ["state_sum", "of_state"], ["felt"]))
        nodes.append(node("Add", ["sum", "felt"], ["planned"]))
    else:
        nodes.append(node("Identity", ["sum"], ["planned"]))
    if committed:
        inputs.append(tensor("committed", TensorProto.FLOAT, [1, committed, 7]))
        inputs.append(tensor("committed_mask", TensorProto.INT64, [1, committed]))
        whole = {"last": [2], "begin": [0], "end": [committed], "all": [HORIZON], "steps": [1]}
        extra = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in whole.items()]
        nodes += [
            node("Unsqueeze", ["committed_mask", "last"], ["column"]),
            node("Cast", ["column"], ["told"], to=TensorProto.BOOL),
            node("Slice", ["planned", "begin", "end", "steps"], ["first"]),
            node("Slice", ["planned", "end", "all", "steps"], ["rest"]),
            node("Where", ["told", "committed", "first"], ["kept"]),
            node("Concat", ["kept", "rest"], ["actions"], axis=1),
        ]
    else:
        extra = []
        nodes.append(node("Identity", ["planned"], ["actions"]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        inputs,
        [tensor("actions", TensorProto.FLOAT, [1, HORIZON, 7])],
        [
            *(numpy_helper.from_array(v.astype(np.float32), name) for name, v in constants.items()),
            *extra,
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def write_sight_graph(path: Path) -> Path:
    """The mean colours of four quarters as tokens; words look at bright ones, the more the more."""
    node, tensor = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("AveragePool", ["pixel_values"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        node("Reshape", ["pooled", "flat"], ["channels"]),
        node("Transpose", ["channels"], ["visual_tokens"], perm=[0, 2, 1]),
        node("ReduceMean", ["visual_tokens", "last"], ["bright"], keepdims=0),
        node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        node("ReduceMax", ["ids"], ["word"], keepdims=0),
        node("Mul", ["bright", "word"], ["wanted"]),
        node("Softmax", ["wanted"], ["attention"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_sight",
        [
            tensor("pixel_values", TensorProto.FLOAT, [1, 3, SIZE, SIZE]),
            tensor("input_ids", TensorProto.INT64, [1, LENGTH]),
            tensor("attention_mask", TensorProto.INT64, [1, LENGTH]),
        ],
        [
            tensor("visual_tokens", TensorProto.FLOAT, [1, 4, 3]),
            tensor("attention", TensorProto.FLOAT, [1, 4]),
        ],
        [
            numpy_helper.from_array(np.array([1, 3, 4], np.int64), "flat"),
            numpy_helper.from_array(np.array([-1], np.int64), "last"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def make_sight_statistics() -> SightStatistics:
    """Mean grey, a tenth of the range wide; familiar up to three of those."""
    return SightStatistics(
        mean=np.full(3, 128 / 255),
        covariance=0.01 * np.eye(3),
        threshold=3.0,
        quantile=0.99,
        neutral="take the",
        place="encoder",
        fitted=9,
        calibrated=9,
    )


def write_tiny_bundle(
    folder: Path,
    *,
    state: bool = False,
    frame: str = "base_link",
    cameras: tuple[str, ...] = ("front",),
    limits: dict[str, float] | None = None,
    sight: bool = False,
    committed: int = 0,
) -> Path:
    """Write folder/bundle and return its path; of several cameras, m is the mean of all.

    With `sight` it tells scenes by their colour: mean grey is familiar (see `write_sight_graph`).
    """
    golden = {
        **{f"image_{name}": np.full((1, 16, 16, 3), 128, np.uint8) for name in cameras},
        "instruction": np.array([CARROT]),
        "reference_actions": np.stack([predict(128 / 255, CARROT, k) for k in range(HORIZON)])[
            None
        ],
    }
    if state:
        golden["state"] = np.zeros((1, len(STATE_NAMES)), np.float32)
    if committed:
        golden["committed"] = np.zeros((1, committed, 7))
        golden["committed_count"] = np.zeros(1, np.int64)
    shape = {"state": state, "cameras": len(cameras), "committed": committed}
    graphs = {"policy": write_tiny_graph(folder / "tiny.onnx", **shape)}
    if sight:
        graphs["sight"] = write_sight_graph(folder / "tiny_sight.onnx")
    bundle = write_bundle(
        folder / "bundle",
        processor=make_tiny_processor(
            state=state, frame=frame, cameras=cameras, committed=committed
        ),
        graphs=graphs,
        golden=golden,
        provenance={"precision": "fp32", "recipe": "written by hand for tests"},
        limits=limits,
        sight=make_sight_statistics() if sight else None,
    )
    with Policy.open(bundle) as policy:
        proof = prove_bundle(bundle, policy.backend)
        assert proof["ok"]
        keep_proof(policy, proof)
    return bundle.path
