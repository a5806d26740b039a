"""Makes radio/ and theia/ beside this file: small random teachers, and what published code says.

Run it where the published code runs, not in this project's environment:

    git clone https://github.com/NVlabs/RADIO && git -C RADIO checkout c0f3701
    git clone https://github.com/bdaiinstitute/theia && git -C theia checkout 59d0448
    python3.11 -m venv old && old/bin/pip install torch==2.2.2 torchvision==0.17.2 timm==0.9.10 \
        transformers==4.40.1 "numpy<2" einops
    PYTHONPATH=RADIO:theia/src old/bin/python make_teacher_golden.py

Each folder holds config.json and model.safetensors as published repositories do (random weights of
a fixed seed, far smaller, float16), and golden.safetensors: `pixels_G` (1, 3, 16 G, 16 G) uint8,
which the published network takes as RANGE[0] + pixels / 255 * (RANGE[1] - RANGE[0]), and
`features_G` (1, G * G, width) as it answers in float32, for grids G.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
GRIDS = (2, 5, 8)
RADIO_RANGE, THEIA_RANGE = (0.0, 1.0), (-2.0, 2.0)
RADIO_ARGUMENTS = {
    "model": "vit_large_patch16_224",
    "model_kwargs": {"embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_ratio": 1.5},
    "pretrained": False,
    "in_chans": None,
    "input_size": None,
    "num_classes": None,
    "drop": 0.0,
    "drop_path": None,
    "drop_block": None,
    "gp": None,
    "bn_momentum": None,
    "bn_eps": None,
    "torchscript": False,
    "initial_checkpoint": "",
    "cpe_max_size": 128,
    "cls_token_per_teacher": True,
    "register_multiple": 8,
    "teachers": [{"name": "clip"}, {"name": "siglip2"}, {"name": "sam", "use_summary": False}],
    "dtype": "float32",
}


def randomise(model: torch.nn.Module) -> None:
    """Weights far from their initialisation, each exactly a float16."""
    generator = torch.Generator().manual_seed(20)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((torch.randn(parameter.shape, generator=generator) * 0.2).half())


def write(name: str, model: torch.nn.Module, prefix: str, config: dict, look, limits) -> None:
    """Save one teacher and what it answers."""
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    trained = {key for key, _ in model.named_parameters()}
    state = {
        prefix + key: (value.half() if key in trained else value).clone().contiguous()
        for key, value in model.state_dict().items()
    }
    save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})
    generator = torch.Generator().manual_seed(21)
    golden = {}
    for grid in GRIDS:
        size = (1, 3, 16 * grid, 16 * grid)
        pixels = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        with torch.no_grad():
            values = limits[0] + pixels / 255 * (limits[1] - limits[0])
            golden[f"features_{grid}"] = look(values).contiguous()
        golden[f"pixels_{grid}"] = pixels
    save_file(golden, str(folder / "golden.safetensors"))


def make_radio() -> None:
    """C-RADIO v3's layout by hf_model.RADIOModel: (summary, spatial features) of [0, 1]."""
    from radio.hf_model import RADIOConfig, RADIOModel

    arguments = json.loads(json.dumps(RADIO_ARGUMENTS))
    config = RADIOConfig(args=arguments, version="c-radio_v3-l", patch_size=16)
    model = RADIOModel(config)
    randomise(model)
    model.eval()
    values = json.loads(config.to_json_string(use_diff=False))
    kept = ("version", "patch_size", "max_resolution", "preferred_resolution", "adaptor_names")
    kept += ("adaptor_configs", "vitdet_window_size", "feature_normalizer_config")
    published = {key: values[key] for key in kept}
    published["args"] = RADIO_ARGUMENTS
    published["architectures"] = ["RADIOModel"]
    published["auto_map"] = {
        "AutoConfig": "hf_model.RADIOConfig",
        "AutoModel": "hf_model.RADIOModel",
    }
    write("radio", model, "", published, lambda x: model(x)[1], RADIO_RANGE)


def make_theia() -> None:
    """Theia's layout by its DeiT backbone: `forward_feature` of normalised pixels."""
    from theia.models.backbones import build_backbone
    from theia.models.utils import handle_feature_output
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    with tempfile.TemporaryDirectory() as folder:
        deit = str(Path(folder) / "deit-tiny-patch16-224")
        config = ViTConfig(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=1,
            intermediate_size=80,
            image_size=128,
        )
        ViTModel(config).save_pretrained(deit)
        ViTImageProcessor().save_pretrained(deit)
        backbone = build_backbone(deit, pretrained=True)
    randomise(backbone)
    backbone.eval()

    def look(pixels: torch.Tensor) -> torch.Tensor:
        states = backbone(
            pixels,
            do_resize=False,
            do_rescale=False,
            do_normalize=False,
            interpolate_pos_encoding=True,
        )
        return handle_feature_output(states)

    published = {
        "architectures": ["TheiaModel"],
        "auto_map": {
            "AutoConfig": "configuration_theia.TheiaConfig",
            "AutoModel": "modeling_theia.TheiaModel",
        },
        "backbone": "facebook/deit-tiny-patch16-224",
    }
    write("theia", backbone, "backbone.", published, look, THEIA_RANGE)


if __name__ == "__main__":
    make_radio()
    make_theia()
