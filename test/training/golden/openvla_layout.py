"""A small checkpoint folder in OpenVLA's published layout, the same bytes in every environment.

Used by the tests and, in the published implementation's own old environment, by
make_openvla_golden.py: numpy and the standard library alone, but for writing tensors (torch).
Weights are drawn from a generator seeded by each tensor's name (numpy's legacy RandomState, whose
stream is frozen) and rounded to bfloat16, so that only outputs need to be committed.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

HIDDEN, LAYERS, MLP = 64, 4, 96
TOWERS = ({"embed_dim": 32, "depth": 3}, {"embed_dim": 48, "depth": 3})
VOCABULARY, PADDED = 32000, 32064
EMPTY_TOKEN = 29871  # the "▁" that training put between "Out:" and the action tokens
INSTRUCTIONS = ("put the carrot on the plate", "open the drawer", "move the blue cup to the left")
SIZES = ((480, 640), (256, 256), (97, 131))
COLUMNS = np.concatenate([np.arange(31744, 32000), np.arange(7, 31000, 491)])
LOGIT_TOKENS = 24  # the last positions of the sequence, whose logits are kept
MERGES = ("O u", "Ou t", "▁ Out", "t o", "▁ to", "h e", "t he", "▁ the", "a c", "▁ ac", "o n")
NORM_STATS = {
    "bridge_tiny": {
        "action": {
            "mean": [0.0002, 0.0001, -0.0001, -0.0002, -0.0004, 0.0002, 0.576],
            "std": [0.01, 0.014, 0.012, 0.028, 0.03, 0.077, 0.497],
            "max": [0.417, 0.259, 0.212, 3.12, 1.86, 6.28, 1.0],
            "min": [-0.401, -0.139, -0.226, -3.2, -1.86, -6.28, 0.0],
            "q01": [-0.0287, -0.0417, -0.0261, -0.0809, -0.0929, -0.2072, 0.0],
            "q99": [0.0283, 0.0409, 0.0402, 0.0819, 0.0779, 0.2038, 1.0],
            "mask": [True, True, True, True, True, True, False],
        },
        "num_transitions": 1234,
        "num_trajectories": 56,
    },
    "still_tiny": {
        "action": {
            "mean": [0.0] * 6 + [0.5],
            "std": [0.1, 0.1, 0.1, 0.0, 0.0, 0.0, 0.5],
            "max": [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0],
            "min": [-1.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0],
            "q01": [-1.0, -0.96, -0.8714, 0.0, 0.0, 0.0, 0.0],
            "q99": [1.0, 0.86, 1.0, 0.0, 0.0, 0.0, 1.0],
        },
        "num_transitions": 99,
        "num_trajectories": 3,
    },
}


def config_json() -> dict:
    """config.json as the published implementation saves it, in a small size."""
    return {
        "arch_specifier": "no-align+fused-gelu-mlp",
        "architectures": ["OpenVLAForActionPrediction"],
        "auto_map": {
            "AutoConfig": "configuration_prismatic.OpenVLAConfig",
            "AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction",
        },
        "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "image_resize_strategy": "resize-naive",
        "image_sizes": [224, 224],
        "llm_backbone_id": "llama2-7b-pure",
        "llm_max_length": 2048,
        "model_type": "openvla",
        "n_action_bins": 256,
        "norm_stats": NORM_STATS,
        "output_projector_states": False,
        "pad_to_multiple_of": 64,
        "pad_token_id": 32000,
        "text_config": {
            "hidden_size": HIDDEN,
            "intermediate_size": MLP,
            "model_type": "llama",
            "num_attention_heads": 4,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": 4,
            "pad_token_id": 32000,
            "torch_dtype": "bfloat16",
            "vocab_size": PADDED,
        },
        "timm_model_ids": [
            "vit_large_patch14_reg4_dinov2.lvd142m",
            "vit_so400m_patch14_siglip_224",
        ],
        "timm_override_act_layers": [None, None],
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_fused_vision_backbone": True,
        "vision_backbone_id": "dinosiglip-vit-so-224px",
    }


def preprocessor_json() -> dict:
    """preprocessor_config.json: the tvf_* values, rounded to bfloat16, are those that count."""
    resize = {"antialias": True, "interpolation": 3, "max_size": None, "size": [224, 224]}
    dino = {
        "inplace": False,
        "mean": [0.484375, 0.455078125, 0.40625],
        "std": [0.228515625, 0.2236328125, 0.224609375],
    }
    siglip = {"inplace": False, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    return {
        "auto_map": {
            "AutoImageProcessor": "processing_prismatic.PrismaticImageProcessor",
            "AutoProcessor": "processing_prismatic.PrismaticProcessor",
        },
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, 224, 224], [3, 224, 224]],
        "interpolations": ["bicubic", "bicubic"],
        "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
        "processor_class": "PrismaticProcessor",
        "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
        "tvf_crop_params": [{"output_size": [224, 224]}, {"output_size": [224, 224]}],
        "tvf_do_letterbox": False,
        "tvf_letterbox_fill": None,
        "tvf_normalize_params": [dino, siglip],
        "tvf_resize_params": [resize, resize],
        "use_fused_vision_backbone": True,
    }


def tokenizer_json() -> dict:
    """A byte-fallback BPE with Llama's rules and id layout, and a few merges of its own."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for merge in MERGES:
        vocab[merge.replace(" ", "")] = len(vocab)
    while len(vocab) < EMPTY_TOKEN:
        vocab[f"<filler_{len(vocab)}>"] = len(vocab)
    for character in "▁" + "".join(map(chr, range(33, 127))):
        vocab[character] = len(vocab)
    while len(vocab) < VOCABULARY:
        vocab[f"<filler_{len(vocab)}>"] = len(vocab)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, "<PAD>": VOCABULARY}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": token, **flags, "special": True}
            for token, index in special.items()
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<s>", "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": list(MERGES),
        },
    }


def tokenizer_config_json() -> dict:
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": False,
        "model_max_length": 2048,
        "pad_token": "<PAD>",
        "padding_side": "right",
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    }


def draw_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the float32 values of a tensor, each exact in bfloat16."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith(("scale_factor", "gamma")):
        values = 0.5 + 0.1 * noise
    elif name.endswith("bias"):
        values = 0.1 * noise
    elif len(shape) == 1:
        values = 1.0 + 0.1 * noise
    elif "embed" in name or "token" in name:
        values = 0.5 * noise
    else:
        values = noise / np.sqrt(np.prod(shape[1:]))
    if name == "language_model.lm_head.weight":
        values[31744:32000] *= 4.0  # so that an untrained model speaks mostly in actions
    return (values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def draw_picture(index: int) -> np.ndarray:
    """Return a (H, W, 3) uint8 picture: gradients, a box and noise, of another size each."""
    height, width = SIZES[index]
    random = np.random.RandomState(index)
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) % 256], -1)
    picture[height // 4 : height // 2, width // 3 : width // 2] = random.randint(0, 256, 3)
    return np.clip(picture + random.randint(-20, 21, picture.shape), 0, 255).astype(np.uint8)


def split_shards(names: list[str]) -> dict[str, str]:
    """Return {tensor: file} over three shards, as a large checkpoint has several."""
    third = -(-len(names) // 3)
    return {
        name: f"model-{i // third + 1:05d}-of-00003.safetensors" for i, name in enumerate(names)
    }


def write_folder(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write the checkpoint: three bfloat16 shards, index, configuration, tokenizer, statistics."""
    import torch
    from safetensors.torch import save_file

    files = split_shards(list(shapes))
    write_documents(folder, shapes, files, config_json())
    for shard in sorted(set(files.values())):
        tensors = {
            name: torch.from_numpy(draw_tensor(name, tuple(shapes[name]))).to(torch.bfloat16)
            for name, file in files.items()
            if file == shard
        }
        save_file(tensors, str(folder / shard), metadata={"format": "pt"})


def write_documents(
    folder: Path, shapes: dict[str, tuple[int, ...]], files: dict[str, str], config: dict
) -> None:
    """Write all but the shards; `files` says which shard holds a tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    total = 2 * sum(int(np.prod(shape)) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    documents = {
        "model.safetensors.index.json": index,
        "config.json": config,
        "preprocessor_config.json": preprocessor_json(),
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32000},
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": tokenizer_config_json(),
        "special_tokens_map.json": {"bos_token": "<s>", "pad_token": "<PAD>"},
        "dataset_statistics.json": NORM_STATS,
    }
    for name, values in documents.items():
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "modeling_prismatic.py").write_text("# published code, never run here\n")
