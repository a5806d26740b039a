"""Make openvla_tiny.npz and the tensor list of OpenVLA-7B with the published implementation.

Runs in the environment that OpenVLA was published with, apart from this package's own:

    python3.11 -m venv old
    old/bin/pip install torch==2.2.2 torchvision==0.17.2 timm==0.9.10 transformers==4.40.1 \
        tokenizers==0.19.1 'numpy<2'
    git clone https://github.com/openvla/openvla   # at c8f03f48af692657d3060c19588038c7220e9af9
    old/bin/python make_openvla_golden.py tiny openvla/prismatic/extern/hf openvla_tiny.npz
    old/bin/python make_openvla_golden.py full openvla/prismatic/extern/hf \
        training/model/openvla/openvla_7b_tensors.json.gz

"tiny" builds the published classes with the published timm models, only narrower and of fewer
blocks, loads the folder of openvla_layout.py into them and keeps what they answer. "full" builds
them at their true size (towers in bfloat16, language model without storage) and keeps every
tensor's name and shape.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import sys
import tempfile
from functools import wraps
from pathlib import Path

import numpy as np
import openvla_layout as layout
import timm
import torch
import transformers
from PIL import Image

PROMPT = "In: What action should the robot take to {}?\nOut:"


def import_published(folder: Path) -> tuple:
    sys.path.insert(0, str(folder.resolve().parent))
    names = ("modeling", "configuration", "processing")
    return tuple(importlib.import_module(f"{folder.name}.{name}_prismatic") for name in names)


def shrink_towers() -> None:
    """Let timm build its published models with the layout's widths and depths."""
    original, sizes = timm.create_model, iter(layout.TOWERS)

    @wraps(original)
    def create(name, **options):
        return original(name, **options, **next(sizes))

    timm.create_model = create


def build_tiny(modeling, configuration):
    config = configuration.OpenVLAConfig(
        **{k: v for k, v in layout.config_json().items() if k not in ("model_type", "auto_map")}
    )
    config._attn_implementation = "sdpa"  # eager refuses predict_action's own mask
    shrink_towers()
    return modeling.OpenVLAForActionPrediction(config).eval()


def load_folder(model, folder: Path) -> None:
    """Read the folder's shards into the published module, strictly."""
    from safetensors.torch import load_file

    tensors = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(str(shard)))
    model.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=True)


def record_sample(model, processor, index: int) -> dict:
    """Forward pass, greedy tokens and un-normalised actions of one picture and instruction."""
    picture = Image.fromarray(layout.draw_picture(index))
    inputs = processor(PROMPT.format(layout.INSTRUCTIONS[index]), picture)
    given = {"input_ids": inputs["input_ids"], "pixel_values": inputs["pixel_values"]}
    empty = torch.tensor([[layout.EMPTY_TOKEN]])
    prompt = torch.cat([inputs["input_ids"], empty], dim=1)
    out = model(input_ids=prompt, pixel_values=given["pixel_values"], output_hidden_states=True)
    generated = model.generate(prompt, pixel_values=given["pixel_values"], max_new_tokens=7)
    kept = {
        "pixels": inputs["pixel_values"][0, :, ::7, ::5],
        "prompt": inputs["input_ids"][0],
        "features": model.vision_backbone(given["pixel_values"])[0, ::8],
        "logits": out.logits[0, -layout.LOGIT_TOKENS :, layout.COLUMNS],
        "best": out.logits[0].argmax(-1),
        "logsumexp": out.logits[0].logsumexp(-1),
        "hidden_2": out.hidden_states[2][0, ::8],
        "hidden_last": out.hidden_states[-1][0, ::8],
        "tokens": generated[0, -7:],
    }
    for key in layout.NORM_STATS:
        actions = model.predict_action(**inputs, unnorm_key=key, do_sample=False)
        kept[f"actions_{key}"] = torch.from_numpy(np.asarray(actions))
    return {f"{index}/{name}": value.numpy() for name, value in kept.items()}


def record_batch(model, processor) -> dict:
    """All samples in one right-padded batch with an attention mask, as in training."""
    pictures = [Image.fromarray(layout.draw_picture(i)) for i in range(len(layout.SIZES))]
    prompts = [PROMPT.format(text) for text in layout.INSTRUCTIONS]
    inputs = processor(prompts, pictures, padding=True)
    out = model(**{name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")})
    return {
        "batch/ids": inputs["input_ids"].numpy(),
        "batch/mask": inputs["attention_mask"].numpy(),
        "batch/logsumexp": out.logits.logsumexp(-1).numpy(),
        "batch/best": out.logits.argmax(-1).numpy(),
    }


def record_positions() -> dict:
    """timm's resampling of a position table, 5x5 to 7x7 and to 3x3 patches."""
    from timm.layers import resample_abs_pos_embed

    table = torch.from_numpy(layout.draw_tensor("positions", (1, 25, 8)))
    return {
        f"positions/{side}": resample_abs_pos_embed(
            table, new_size=[side, side], num_prefix_tokens=0
        ).numpy()
        for side in (3, 7)
    }


@torch.no_grad()
def make_tiny(published: Path, out: Path) -> None:
    modeling, configuration, processing = import_published(published)
    model = build_tiny(modeling, configuration)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        layout.write_folder(folder, shapes)
        load_folder(model, folder)
        tokenizer = transformers.LlamaTokenizerFast.from_pretrained(folder)
        pictures = processing.PrismaticImageProcessor.from_pretrained(folder)
        processor = processing.PrismaticProcessor(pictures, tokenizer)
        arrays = {}
        for index in range(len(layout.SIZES)):
            arrays.update(record_sample(model, processor, index))
        arrays.update(record_batch(model, processor))
    arrays.update(record_positions())
    arrays["shapes"] = np.array(json.dumps(shapes))
    arrays["versions"] = np.array(json.dumps(name_versions()))
    np.savez_compressed(out, **arrays)
    for name, value in arrays.items():
        print(name, value.shape, value.dtype)
        if "tokens" in name or "actions" in name:
            print("   ", value)


@torch.no_grad()
def make_full(published: Path, out: Path) -> None:
    modeling, configuration, _ = import_published(published)
    build = modeling.AutoModelForCausalLM.from_config

    def build_without_storage(*args, **options):
        with torch.device("meta"):
            return build(*args, **options)

    modeling.AutoModelForCausalLM.from_config = build_without_storage
    config = configuration.OpenVLAConfig(
        vision_backbone_id="dinosiglip-vit-so-224px",
        llm_backbone_id="llama2-7b-pure",
        arch_specifier="no-align+fused-gelu-mlp",
        image_resize_strategy="resize-naive",
        text_config={"vocab_size": 32064, "pad_token_id": 32000},
        norm_stats={},
    )
    torch.set_default_dtype(torch.bfloat16)
    with transformers.modeling_utils.no_init_weights():
        model = modeling.OpenVLAForActionPrediction(config)
    tensors = {name: list(value.shape) for name, value in model.state_dict().items()}
    parameters = sum(value.numel() for value in model.state_dict().values())
    document = {
        "source": "github.com/openvla/openvla c8f03f48, prismatic/extern/hf; OpenVLA-7B's config",
        "versions": name_versions(),
        "parameters": parameters,
        "tensors": tensors,
    }
    text = json.dumps(document, indent=0).encode()
    out.write_bytes(gzip.compress(text, mtime=0))
    print(len(tensors), "tensors,", parameters, "parameters")


def name_versions() -> dict:
    import tokenizers
    import torchvision

    modules = (torch, torchvision, timm, transformers, tokenizers, np)
    return {module.__name__: module.__version__ for module in modules}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("tiny", "full"))
    parser.add_argument("published", type=Path, help="folder of modeling_prismatic.py and others")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    {"tiny": make_tiny, "full": make_full}[options.kind](options.published, options.out)
