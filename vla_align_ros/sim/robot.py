"""What every simulated arm senses, and the frame in which its gripper is told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STATE_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
# A site's or link's x axis points along the fingers; the tool frame is turned so that a gripper
# that points straight down at yaw 0 has the identity rotation, and roll, pitch, yaw stay regular.
SITE_FROM_TOOL = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])


@dataclass(frozen=True)
class SimObservation:
    """What the robot senses.

    `image` is (H, W, 3) uint8 RGB or None without a renderer; `state` is (7,) float32: tool
    position in metres, roll, pitch, yaw in radians (base frame), gripper opening 0..1.
    """

    image: NDArray[np.uint8] | None
    state: NDArray[np.float32]
    time_s: float
