"""What the student is aligned to: the teacher's features of the pictures that the student sees."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.alignment.teachers import Teacher


@torch.no_grad()
def compute_targets(teacher: Teacher, images: NDArray[np.uint8], grid: int) -> Tensor:
    """Teacher features (B, grid * grid, width) of raw, augmented RGB (B, H, W, 3) uint8.

    Of several cameras, (B, cameras, H, W, 3), features follow each other as the student's visual
    tokens do: (B, cameras * grid * grid, width).
    """
    flat = images.reshape(-1, *images.shape[-3:])
    features = teacher.features(teacher.preprocess(flat, grid))
    together: Tensor = features.reshape(len(images), -1, features.shape[-1])
    return together
