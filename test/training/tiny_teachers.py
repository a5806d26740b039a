"""Small random vision models, saved in the very layouts in which teachers are published."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WIDTH, HEADS, BLOCKS = 24, 2, 3
_COMMON = {
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "intermediate_size": 40,
}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights far from their initialisation, where nothing is zero or one by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def make_dinov2(folder: Path, *, registers: bool = False) -> Any:
    import transformers as t

    kind, config = (
        (t.Dinov2WithRegistersModel, t.Dinov2WithRegistersConfig)
        if registers
        else (t.Dinov2Model, t.Dinov2Config)
    )
    values = {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS}
    model = randomise(kind(config(**values, patch_size=14, image_size=56)))
    model.save_pretrained(folder)
    return model


def make_dinov3(folder: Path) -> Any:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(**_COMMON, patch_size=16, image_size=64, num_register_tokens=4)
    model = randomise(DINOv3ViTModel(config))
    model.save_pretrained(folder)
    return model


def make_siglip(folder: Path, *, whole: bool = True) -> Any:
    """Image and text tower together, as published, or the vision tower alone."""
    import transformers as t

    vision = {**_COMMON, "patch_size": 14, "image_size": 56}
    if not whole:
        model = randomise(t.SiglipVisionModel(t.SiglipVisionConfig(**vision)))
        model.save_pretrained(folder)
        return model
    text = {**_COMMON, "vocab_size": 30, "max_position_embeddings": 8, "projection_size": WIDTH}
    both = randomise(t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=vision)))
    both.save_pretrained(folder)
    return both.vision_model


def make_siglip2(folder: Path) -> Any:
    """The layout of any size (NaFlex), with 4 x 4 learned positions."""
    import transformers as t

    vision = {**_COMMON, "patch_size": 16, "num_patches": 16}
    text = {**_COMMON, "vocab_size": 30, "max_position_embeddings": 8, "projection_size": WIDTH}
    both = randomise(t.Siglip2Model(t.Siglip2Config(text_config=text, vision_config=vision)))
    both.save_pretrained(folder)
    return both.vision_model


def make_radio(folder: Path) -> Any:
    """transformers' own layout of C-RADIO, with its own keys in config.json."""
    from transformers import RadioConfig, RadioModel

    config = RadioConfig(
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        mlp_ratio=1.5,
        max_img_size=128,
        num_cls_tokens=2,
        num_registers=3,
    )
    model: Any = randomise(RadioModel(config))
    for block in model.encoder.layer:  # C-RADIO has no layer scales
        nn.init.ones_(block.layer_scale1.lambda1)
        nn.init.ones_(block.layer_scale2.lambda1)
    model.save_pretrained(folder)
    return model


def make_published_radio(folder: Path, **changes: Any) -> Any:
    """The same weights under the names, and with the config.json, of C-RADIO v3."""
    model = make_radio(folder)
    (folder / "model.safetensors").unlink()
    save_file(publish_radio(model.state_dict()), folder / "model.safetensors")
    values: dict[str, Any] = {
        "architectures": ["RADIOModel"],
        "auto_map": {"AutoConfig": "hf_model.RADIOConfig", "AutoModel": "hf_model.RADIOModel"},
        "args": {
            "model": "vit_large_patch16_224",
            "model_kwargs": {"num_heads": HEADS},
            "cls_token_per_teacher": True,
            "cpe_max_size": 128,
            "teachers": [{"name": "clip"}, {"name": "dino"}, {"name": "sam", "use_summary": False}],
        },
        "version": "c-radio_v3-l",
        "patch_size": 16,
        "vitdet_window_size": None,
        "feature_normalizer_config": None,
    }
    for key, value in changes.items():
        (values["args"] if key in ("model", "model_norm", "model_kwargs") else values)[key] = value
    (folder / "config.json").write_text(json.dumps(values))
    return model


def publish_radio(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the published C-RADIO weights, with query, key and value in one tensor."""
    published = {
        "radio_model.input_conditioner.norm_mean": state["input_conditioner.norm_mean"],
        "radio_model.input_conditioner.norm_std": state["input_conditioner.norm_std"],
        "radio_model.summary_idxs": state["summary_idxs"],
    }
    generator = "radio_model.model.patch_generator."
    published[f"{generator}embedder.weight"] = state["embeddings.patch_projection.weight"]
    published[f"{generator}pos_embed"] = state["embeddings.position_embedding"]
    published[f"{generator}cls_token.token"] = state["embeddings.cls_register_token"]
    for block in range(BLOCKS):
        old, new = f"encoder.layer.{block}.", f"radio_model.model.blocks.{block}."
        for kind in ("weight", "bias"):
            for module in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                published[f"{new}{module}.{kind}"] = state[f"{old}{module}.{kind}"]
            parts = [state[f"{old}attention.{name}_proj.{kind}"] for name in "qkv"]
            published[f"{new}attn.qkv.{kind}"] = torch.cat(parts)
            published[f"{new}attn.proj.{kind}"] = state[f"{old}attention.o_proj.{kind}"]
    return {key: value.clone().contiguous() for key, value in published.items()}


def make_theia(folder: Path, backbone: str = "facebook/deit-tiny-patch16-224") -> Any:
    """Theia's layout: a DeiT under `backbone.model`, in the names of older transformers."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=128,  # two heads of DeiT's width
        num_hidden_layers=BLOCKS,
        num_attention_heads=2,
        intermediate_size=40,
        patch_size=16,
        image_size=64,
    )
    model = randomise(ViTModel(config, add_pooling_layer=False))
    folder.mkdir(parents=True, exist_ok=True)
    renamed = {f"backbone.model.{_old_vit_name(k)}": v for k, v in model.state_dict().items()}
    renamed["translator.heads.weight"] = torch.ones(2, 2)
    save_file({k: v.clone() for k, v in renamed.items()}, folder / "model.safetensors")
    values = {
        "backbone": backbone,
        "auto_map": {
            "AutoConfig": "configuration_theia.TheiaConfig",
            "AutoModel": "modeling_theia.TheiaModel",
        },
    }
    (folder / "config.json").write_text(json.dumps(values))
    return model


def _old_vit_name(name: str) -> str:
    for new, old in (
        ("layers.", "encoder.layer."),
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ):
        name = name.replace(new, old)
    return name


# Code as a repository brings it. It writes a file where it stands when it is imported or built, so
# that a test sees whether any of it ran.
_TRACE = 'import os, pathlib\npathlib.Path(os.environ["TRACE_OF_REMOTE_CODE"]).touch()\n'
RADIO_CODE = (
    _TRACE
    + """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

class RADIOConfig(PretrainedConfig):
    model_type = "tiny_radio_remote"
    def __init__(self, with_adaptors=False, **kwargs):
        self.with_adaptors = with_adaptors
        super().__init__(**kwargs)

class RADIOModel(PreTrainedModel):
    config_class = RADIOConfig
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Conv2d(3, 8, 16, stride=16)
        self.post_init()
    def _init_weights(self, module):
        pass
    @property
    def patch_size(self):
        return 16
    @property
    def min_resolution_step(self):
        return 16
    def forward(self, x):
        spatial = self.embed(x).flatten(2).transpose(1, 2)
        answer = (spatial.mean(1), spatial)
        return {"backbone": answer, "clip": None} if self.config.with_adaptors else answer
"""
)
THEIA_CODE = (
    _TRACE
    + """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, ViTConfig, ViTModel

class TheiaConfig(PretrainedConfig):
    model_type = "tiny_theia_remote"
    def __init__(self, backbone="", **kwargs):
        self.backbone = backbone
        super().__init__(**kwargs)

class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=20, patch_size=16, image_size=64)
        self.model = ViTModel(config, add_pooling_layer=False)

class TheiaModel(PreTrainedModel):
    config_class = TheiaConfig
    def __init__(self, config):
        super().__init__(config)
        self.backbone = Backbone()
        self.post_init()
    def _init_weights(self, module):
        pass
    def forward_feature(self, x, do_resize=True, do_rescale=True, do_normalize=True,
                        interpolate_pos_encoding=None):
        assert not (do_resize or do_rescale or do_normalize)
        return self.backbone.model(
            pixel_values=x, interpolate_pos_encoding=interpolate_pos_encoding
        ).last_hidden_state[:, 1:]
"""
)


def make_remote(folder: Path, code: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """A repository with code and random weights; returns the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "remote_model.py").write_text(code)
    names = ("RADIOConfig", "RADIOModel") if "RADIOModel" in code else ("TheiaConfig", "TheiaModel")
    auto_map = dict(zip(("AutoConfig", "AutoModel"), names, strict=True))
    config = {**config, "auto_map": {k: f"remote_model.{v}" for k, v in auto_map.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(3)
    if "RADIOModel" in code:
        shapes: dict[str, Any] = {"embed.weight": (8, 3, 16, 16), "embed.bias": (8,)}
    else:
        from transformers import ViTConfig, ViTModel

        vit = ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=20,
            patch_size=16,
            image_size=64,
        )
        state = ViTModel(vit, add_pooling_layer=False).state_dict()
        shapes = {f"backbone.model.{k}": tuple(v.shape) for k, v in state.items()}
    weights = {k: torch.randn(s, generator=generator) * 0.1 for k, s in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return weights


@contextmanager
def remote_modules_in(folder: Path) -> Iterator[None]:
    """Keep the copies that transformers makes of remote code in `folder`."""
    from transformers import dynamic_module_utils as modules
    from transformers.utils import hub

    kept = modules.HF_MODULES_CACHE, hub.HF_MODULES_CACHE, list(sys.path)
    modules.HF_MODULES_CACHE = hub.HF_MODULES_CACHE = str(folder)
    try:
        yield
    finally:
        modules.HF_MODULES_CACHE, hub.HF_MODULES_CACHE = kept[:2]
        sys.path[:] = kept[2]


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change a saved model's tensors in place."""
    path = folder / "model.safetensors"
    state = {key: value.clone() for key, value in load_file(path).items()}
    change(state)
    save_file(state, path, metadata={"format": "pt"})
