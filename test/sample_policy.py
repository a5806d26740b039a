"""A tiny but whole policy for tests: tokenizer, processor, real ONNX graph, golden samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from vla_align_ros.contract.bundle import Bundle, write_bundle
from vla_align_ros.contract.golden import iterate_observations
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.contract.normalize import Normalizer, compute_statistics
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.prompt import PromptTemplate, PromptTokenizer
from vla_align_ros.contract.spec import ActionSpec, CameraSpec, PolicySpec, StateSpec
from vla_align_ros.runtime.golden import prove_bundle
from vla_align_ros.runtime.policy import Policy
from vla_align_ros.runtime.proofs import keep_proof

STATE_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
HORIZON = 4
SIZE = 14
LENGTH = 24
INSTRUCTIONS = ("put the carrot on the plate", "put the cube on the cloth")
WORDS = [
    *["in", ":", "what", "action", "should", "the", "robot", "take", "to"],
    *["put", "carrot", "cube", "on", "plate", "cloth", "?", "out"],
]


def make_tokenizer() -> bytes:
    vocabulary = ["<unk>", "<s>", "<pad>", *WORDS, "In", "Out", "What"]
    tokenizer = Tokenizer(
        WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["<s>", "<pad>"])
    return tokenizer.to_str().encode()


def make_spec(
    *, cameras: int = 1, state: bool = True, horizon: int = HORIZON, committed: int = 0
) -> PolicySpec:
    names = ("front", "wrist", "side")[:cameras]
    return PolicySpec(
        cameras=tuple(CameraSpec(name, 24, 32) for name in names),
        state=StateSpec(STATE_NAMES) if state else None,
        action=ActionSpec("base_link", 5.0, horizon, committed=committed),
    )


def make_processor(
    spec: PolicySpec | None = None, *, mode: str = "quantile", crop: float = 0.9
) -> Processor:
    spec = make_spec() if spec is None else spec
    rng = np.random.default_rng(0)
    spread = np.array([0.02, 0.02, 0.02, 0.1, 0.1, 0.1, 0.3])
    actions = rng.normal(size=(500, 7)) * spread + np.array([0, 0, 0, 0, 0, 0, 0.5])
    normalizers = {"action": Normalizer(mode, compute_statistics(actions))}
    if spec.state is not None:
        normalizers["state"] = Normalizer("mean_std", compute_statistics(rng.normal(size=(50, 7))))
    tokenizer = PromptTokenizer(make_tokenizer(), PromptTemplate(), LENGTH)
    return Processor(spec, ImageTransform(SIZE, crop=crop), normalizers, tokenizer)


def make_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "image_weight": rng.normal(size=(3, HORIZON * 7)).astype(np.float32),
        "state_weight": (0.2 * rng.normal(size=(7, HORIZON * 7))).astype(np.float32),
        "text_weight": (0.05 * rng.normal(size=(LENGTH, HORIZON * 7))).astype(np.float32),
    }


def make_graph(path: Path, *, noise: float = 0.0) -> Path:
    """Write actions = tanh(mean pixel @ A + state @ B + masked ids @ C); noise disturbs A."""
    weights = make_weights()
    if noise:
        weights["image_weight"] = weights["image_weight"] + np.float32(noise)
    tensor = helper.make_tensor_value_info
    nodes = [
        helper.make_node("ReduceMean", ["pixel_values"], ["pixels"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["pixels", "image_weight"], ["seen"]),
        helper.make_node("MatMul", ["state", "state_weight"], ["felt"]),
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["ids"]),
        helper.make_node("Cast", ["ids"], ["words"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["words", "text_weight"], ["heard"]),
        helper.make_node("Sum", ["seen", "felt", "heard"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["actions"]),
    ]
    constants = {**weights, "shape": np.array([1, HORIZON, 7], dtype=np.int64)}
    graph = helper.make_graph(
        nodes,
        "policy",
        [
            tensor("pixel_values", TensorProto.FLOAT, [1, 3, SIZE, SIZE]),
            tensor("input_ids", TensorProto.INT64, [1, LENGTH]),
            tensor("attention_mask", TensorProto.INT64, [1, LENGTH]),
            tensor("state", TensorProto.FLOAT, [1, 7]),
        ],
        [tensor("actions", TensorProto.FLOAT, [1, HORIZON, 7])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def run_reference(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Compute the same as the graph in float64: (1, H, 7) normalised actions."""
    weights = {name: value.astype(np.float64) for name, value in make_weights().items()}
    ids = inputs["input_ids"] * inputs["attention_mask"]
    total = (
        inputs["pixel_values"].astype(np.float64).mean(axis=(2, 3)) @ weights["image_weight"]
        + inputs["state"].astype(np.float64) @ weights["state_weight"]
        + ids.astype(np.float64) @ weights["text_weight"]
    )
    return np.tanh(total).reshape(1, HORIZON, 7)


def make_golden(processor: Processor, samples: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    arrays: dict[str, Any] = {
        f"image_{camera.name}": rng.integers(0, 256, (samples, 24, 32, 3), dtype=np.uint8)
        for camera in processor.spec.cameras
    }
    arrays["state"] = rng.normal(size=(samples, 7)).astype(np.float32)
    arrays["instruction"] = np.array([INSTRUCTIONS[i % 2] for i in range(samples)])
    arrays["reference_actions"] = np.stack(
        [
            processor.normalizers["action"].denormalize(run_reference(processor.prepare(seen))[0])
            for seen in iterate_observations(arrays, processor.spec)
        ]
    )
    return arrays


def prove(bundle: Bundle) -> Bundle:
    """Keep a proof in a bundle, without which no node runs it."""
    with Policy.open(bundle) as policy:
        keep_proof(policy, prove_bundle(bundle, policy.backend))
    return bundle


def make_bundle(
    folder: Path,
    *,
    noise: float = 0.0,
    precision: str = "fp32",
    limits: dict[str, float] | None = None,
) -> Bundle:
    processor = make_processor()
    return write_bundle(
        folder / "bundle",
        processor=processor,
        graphs={"policy": make_graph(folder / "export.onnx", noise=noise)},
        golden=make_golden(processor),
        provenance={"precision": precision, "recipe": "tiny", "dataset": {"seed": 3}},
        limits=limits,
    )
