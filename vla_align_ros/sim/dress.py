"""Turns the empty model of `scene` into an episode's scene: shapes, colours, places and light."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.sim import scene
from vla_align_ros.sim.catalogue import OBJECTS, RECEPTACLES
from vla_align_ros.sim.layout import Layout

_PARKED_Z_M = -3.0


def dress(model: Any, layout: Layout) -> None:
    """Give every slot the shape that the layout asks for; set the table, the light, the camera."""
    for slot, placed in enumerate(layout.objects):
        _dress_object(model, slot, placed.name)
    for slot, placed in enumerate(layout.receptacles):
        _dress_receptacle(model, slot, placed.name)
    model.geom("table").matid = int(model.material(f"table_{layout.table}").id)
    model.vis.headlight.ambient[:] = 0.35 * layout.light
    model.vis.headlight.diffuse[:] = 0.25 * layout.light
    model.light("sun").diffuse = np.full(3, 0.6 * layout.light)
    camera = int(model.camera("front").id)
    model.cam_pos[camera] = np.array(scene.CAMERA_POSITION_M) + layout.camera_offset_m


def place(model: Any, data: Any, layout: Layout) -> None:
    """Put everything where the layout says; empty slots are parked below the floor, weightless."""
    for slot in range(scene.OBJECT_SLOTS):
        address = int(model.joint(f"object_{slot}").qposadr[0])
        present = slot < len(layout.objects)
        model.body_gravcomp[int(model.body(f"object_{slot}").id)] = 0.0 if present else 1.0
        pose = np.array([0.5 * slot, 0.0, _PARKED_Z_M, 1.0, 0.0, 0.0, 0.0])
        if present:
            placed = layout.objects[slot]
            half = placed.yaw_rad / 2.0
            height = OBJECTS[placed.name].radius_m + 0.001
            pose[:] = [placed.x_m, placed.y_m, height, np.cos(half), 0, 0, np.sin(half)]
        data.qpos[address : address + 7] = pose
    for slot, placed in enumerate(layout.receptacles):
        body = int(model.body(f"receptacle_{slot}").id)
        model.body_pos[body] = [placed.x_m, placed.y_m, 0.0]


def overlay(picture: NDArray[np.uint8], share: float, seed: int) -> NDArray[np.uint8]:
    """Blend a coarse noise picture over (S, S, 3) uint8; `share` 0 leaves it, 1 replaces it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (14, 14, 3)).astype(np.float32)
    rows = np.arange(picture.shape[0]) * coarse.shape[0] // picture.shape[0]
    columns = np.arange(picture.shape[1]) * coarse.shape[1] // picture.shape[1]
    blend = (1.0 - share) * picture + share * coarse[rows][:, columns]
    result: NDArray[np.uint8] = blend.astype(np.uint8)
    return result


def _dress_object(model: Any, slot: int, name: str) -> None:
    shape = OBJECTS[name]
    for index in range(scene.PARTS_PER_OBJECT):
        geom = int(model.geom(f"object_{slot}_visual_{index}").id)
        visible = index < len(shape.parts)
        _wear(model, geom, f"{name}_{index if visible else 0}")
        model.geom_rgba[geom] = shape.parts[index].rgba if visible else (0, 0, 0, 0)
    geom = int(model.geom(f"object_{slot}_collision").id)
    half_sizes = np.array([shape.half_length_m, 0.95 * shape.radius_m, 0.95 * shape.radius_m])
    _resize(model, geom, half_sizes, half_sizes)


def _dress_receptacle(model: Any, slot: int, name: str) -> None:
    shape = RECEPTACLES[name]
    geom = int(model.geom(f"receptacle_{slot}_visual").id)
    _wear(model, geom, name)
    model.geom_rgba[geom] = shape.rgba
    radius, half = shape.radius_m, scene.RECEPTACLE_THICKNESS_M / 2
    geom = int(model.geom(f"receptacle_{slot}_collision").id)
    _resize(model, geom, np.array([radius, half, 0.0]), np.array([radius, radius, half]))


def _wear(model: Any, geom: int, mesh: str) -> None:
    index = int(model.mesh(mesh).id)
    model.geom_dataid[geom] = index
    model.geom_pos[geom] = model.mesh_pos[index]
    model.geom_quat[geom] = model.mesh_quat[index]


def _resize(
    model: Any, geom: int, size: NDArray[np.float64], half_box: NDArray[np.float64]
) -> None:
    """Change a collision shape; its bounding sphere and box must follow or contacts are missed."""
    model.geom_size[geom] = size
    model.geom_rbound[geom] = float(np.linalg.norm(half_box))
    model.geom_aabb[geom, 3:] = half_box
