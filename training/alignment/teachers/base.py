"""What alignment needs of a teacher, and the part that every teacher around a module shares."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.alignment.teachers.pixels import PixelRecipe
from training.fingerprint import fingerprint_weights
from vla_align_ros.errors import ConfigurationError

Self = TypeVar("Self", bound="ModuleTeacher")


class Teacher(Protocol):
    """A frozen network that says what good visual tokens look like."""

    @property
    def name(self) -> str:
        """As in TeacherConfig.name."""
        ...

    @property
    def width(self) -> int:
        """Channels of a feature, read from the weights."""
        ...

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all that decides a feature but the picture: part of cache keys."""
        ...

    def preprocess(self, images: NDArray[np.uint8], grid: int) -> Tensor:
        """Turn raw RGB (B, H, W, 3) uint8 into input whose features form `grid` x `grid`."""
        ...

    def features(self, pixels: Tensor) -> Tensor:
        """Return (B, grid * grid, width) features without gradient, row-major."""
        ...

    def to(self, device: torch.device | str) -> Teacher:
        """Move the weights."""
        ...


class ModuleTeacher:
    """A teacher around a torch module; a subclass says how the module looks at pixels.

    It is no nn.Module itself, so that its weights enter no checkpoint and no optimizer. `width` is
    the output's own, found by looking at one grey picture.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        recipe: PixelRecipe,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        decides: str = "",
    ) -> None:
        """`decides`: whatever else decides a feature, for the fingerprint.

        That is the layer, the code, and of the architecture what no weight tells (heads, epsilons,
        activations), where the class leaves it open.
        """
        self.name, self.recipe = name, recipe
        self._model: Any = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self._dtype, self._device = dtype, torch.device(device)
        self._decides = decides
        self._fingerprint: str | None = None
        grey = np.full((1, recipe.patch, recipe.patch, 3), 128, dtype=np.uint8)
        self._width = int(self.features(self.preprocess(grey, 2)).shape[-1])

    @property
    def width(self) -> int:
        """Channels of a feature, read from the weights."""
        return self._width

    @property
    def fingerprint(self) -> str:
        """Hash of weights, `decides`, pixels and precision; computed once, equal on any device."""
        if self._fingerprint is None:
            decisive = "\n".join(
                (
                    fingerprint_weights(self._model.state_dict()),
                    self.recipe.describe(),
                    str(self._dtype),
                    self._decides,
                )
            )
            self._fingerprint = hashlib.sha256(decisive.encode()).hexdigest()[:16]
        return self._fingerprint

    def to(self: Self, device: torch.device | str) -> Self:
        """Move the weights to `device`."""
        self._device = torch.device(device)
        self._model.to(self._device)
        return self

    def preprocess(self, images: NDArray[np.uint8], grid: int) -> Tensor:
        """Turn raw RGB (B, H, W, 3) uint8 into (B, 3, patch * grid, patch * grid) float32."""
        return self.recipe(images, grid)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Return (B, grid * grid, width) features without gradient, in the teacher's precision.

        An autocast around it changes nothing, so that features from a cache equal those computed
        online.
        """
        with torch.autocast(self._device.type, enabled=False):
            features = self._look(pixels.to(self._device))
        rows, columns = (side // self.recipe.patch for side in pixels.shape[-2:])
        if features.ndim != 3 or features.shape[:2] != (len(pixels), rows * columns):
            raise ConfigurationError(
                f"The teacher {self.name} does not give one feature a patch",
                got=f"{tuple(features.shape)} for {tuple(pixels.shape)}",
                expected=f"({len(pixels)}, {rows * columns}, width)",
                fix="use a vision transformer with a square grid of patches",
            )
        return features.detach()

    def _look(self, pixels: Tensor) -> Tensor:
        """Map float32 pixels on the teacher's device to (B, N, width)."""
        raise NotImplementedError


def take_layer(blocks: nn.ModuleList, layer: int | None, name: str) -> None:
    """Drop the blocks behind `layer`; ConfigurationError if there are not so many."""
    if layer is None:
        return
    if layer > len(blocks):
        raise ConfigurationError(
            f"The teacher {name} has no such layer",
            got=f"layer {layer}",
            expected=f"1 to {len(blocks)}",
            fix="correct teacher.layer, or null for the teacher's own output",
        )
    del blocks[layer:]
