"""The simulator's truth as a vector beside each frame: labels for training, never for a robot."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.sim.tabletop import CAMERA, TabletopEnv

ENVIRONMENT_STATE_NAMES = (
    "object_x",
    "object_y",
    "object_z",
    "object_yaw",
    "object_u",
    "object_v",
    "receptacle_x",
    "receptacle_y",
    "receptacle_u",
    "receptacle_v",
    "other_object_x",
    "other_object_y",
    "other_receptacle_x",
    "other_receptacle_y",
    "held",
)


def environment_state(env: TabletopEnv) -> NDArray[np.float32]:
    """Labels of the current task (15,) float32, as `ENVIRONMENT_STATE_NAMES`.

    Metres and radians in the base frame; u, v are fractions of the picture's width and height.
    """
    task, layout = env.task, env.layout
    position, yaw = env.object_pose(task.object)
    centre = env.receptacle_position(task.receptacle)
    other = next(p.name for p in layout.objects if p.name != task.object)
    vessel = next(p.name for p in layout.receptacles if p.name != task.receptacle)
    return np.array(
        [
            *position,
            yaw,
            *project(env, position),
            *centre[:2],
            *project(env, centre),
            *env.object_pose(other)[0][:2],
            *env.receptacle_position(vessel)[:2],
            float(env.held_object() == task.object),
        ],
        dtype=np.float32,
    )


def project(env: TabletopEnv, point: NDArray[np.float64]) -> tuple[float, float]:
    """Where a point (3,) in metres appears, as fractions of the picture's width and height."""
    camera = int(env.model.camera(CAMERA).id)
    rotation = env.data.cam_xmat[camera].reshape(3, 3)
    x, y, z = rotation.T @ (point - env.data.cam_xpos[camera])
    scale = 0.5 / np.tan(np.radians(env.model.cam_fovy[camera]) / 2.0)
    return float(0.5 + scale * x / -z), float(0.5 - scale * y / -z)
