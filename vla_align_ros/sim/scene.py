"""Builds the one MuJoCo model that every episode re-uses: arm, table, empty slots for things."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from vla_align_ros.errors import SimulationError
from vla_align_ros.sim.catalogue import (
    OBJECTS,
    RECEPTACLES,
    TRAIN_TABLES,
    UNSEEN_TABLES,
    revolve,
    table_texture,
)

PHYSICS_STEP_S = 0.004
OBJECT_SLOTS = 4
RECEPTACLE_SLOTS = 2
PARTS_PER_OBJECT = 2
RECEPTACLE_THICKNESS_M = 0.006
TABLES = TRAIN_TABLES + UNSEEN_TABLES
CAMERA_POSITION_M = (0.74, 0.0, 0.54)
CAMERA_TARGET_M = (0.268, 0.0, 0.04)
CAMERA_FOVY_DEG = 42.0
RENDER_LIMIT_PX = 640


def arm_model_path() -> Path:
    """Path of the WidowX AI model that the wheel `trossen-arm-sim` carries."""
    from importlib.resources import files

    try:
        root = files("trossen_arm_sim")
    except ModuleNotFoundError as error:
        raise SimulationError(
            "The arm's model is not installed",
            got="no module trossen_arm_sim",
            expected="the wheel trossen-arm-sim",
            fix="pip install 'vla_align_ros[sim]'",
        ) from error
    return Path(str(root)) / "assets" / "wxai_follower.xml"


def look_at(position: Any, target: Any) -> list[float]:
    """MuJoCo `xyaxes` of a camera at `position` that looks at `target` with z up."""
    back = np.asarray(position, float) - np.asarray(target, float)
    back /= np.linalg.norm(back)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    return [*right, *np.cross(back, right)]


def build_model() -> mujoco.MjModel:
    """Compile the table-top: slots `object_0..3` (free bodies) and `receptacle_0..1` (static)."""
    path = arm_model_path()
    spec = mujoco.MjSpec.from_file(str(path))
    spec.meshdir = str(path.parent)
    spec.option.timestep = PHYSICS_STEP_S
    spec.option.impratio = 10
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.visual.quality.shadowsize = 1024
    spec.visual.quality.offsamples = 0
    spec.visual.global_.offwidth = RENDER_LIMIT_PX
    spec.visual.global_.offheight = RENDER_LIMIT_PX
    _add_room(spec)
    _add_meshes(spec)
    for slot in range(OBJECT_SLOTS):
        _add_object_slot(spec, slot)
    for slot in range(RECEPTACLE_SLOTS):
        _add_receptacle_slot(spec, slot)
    _soften_fingers(spec)
    return spec.compile()


def _add_room(spec: Any) -> None:
    world = spec.worldbody
    for table in TABLES:
        texture = spec.add_texture(
            name=f"table_{table}",
            type=mujoco.mjtTexture.mjTEXTURE_2D,
            width=256,
            height=256,
            nchannel=3,
        )
        texture.data = table_texture(table).tobytes()
        material = spec.add_material(
            name=f"table_{table}", texrepeat=[2, 2], specular=0.1, shininess=0.1
        )
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = f"table_{table}"
    box = mujoco.mjtGeom.mjGEOM_BOX
    world.add_geom(
        name="table",
        type=box,
        size=[0.45, 0.5, 0.02],
        pos=[0.25, 0, -0.02],
        material=f"table_{TABLES[0]}",
        friction=[0.8, 0.01, 0.001],
    )
    for name, size, pos, rgba in (
        ("wall", [0.02, 1.5, 1.0], [-0.8, 0, 0.4], [0.45, 0.55, 0.6, 1]),
        ("floor", [2, 2, 0.02], [0.25, 0, -0.7], [0.3, 0.3, 0.32, 1]),
    ):
        world.add_geom(name=name, type=box, size=size, pos=pos, rgba=rgba, contype=0, conaffinity=0)
    world.add_light(
        name="sun",
        pos=[0.3, -0.4, 1.4],
        dir=[0, 0.3, -1],
        castshadow=True,
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
    )
    world.add_camera(
        name="front",
        pos=CAMERA_POSITION_M,
        xyaxes=look_at(CAMERA_POSITION_M, CAMERA_TARGET_M),
        fovy=CAMERA_FOVY_DEG,
    )


def _add_meshes(spec: Any) -> None:
    shell = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
    for name, shape in OBJECTS.items():
        for index, part in enumerate(shape.parts):
            vertices, faces = revolve(part.profile, 20)
            spec.add_mesh(
                name=f"{name}_{index}",
                uservert=vertices.flatten(),
                userface=faces.flatten(),
                inertia=shell,
            )
    for name, receptacle in RECEPTACLES.items():
        vertices, faces = revolve(receptacle.profile, 32)
        spec.add_mesh(
            name=name,
            uservert=vertices[:, [1, 2, 0]].flatten(),
            userface=faces.flatten(),
            inertia=shell,
        )


def _visual(body: Any, name: str, mesh: str) -> None:
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_MESH,
        meshname=mesh,
        contype=0,
        conaffinity=0,
        mass=0,
        group=2,
    )


def _add_object_slot(spec: Any, slot: int) -> None:
    body = spec.worldbody.add_body(name=f"object_{slot}", gravcomp=0)
    body.add_freejoint(name=f"object_{slot}")
    for part in range(PARTS_PER_OBJECT):
        _visual(body, f"object_{slot}_visual_{part}", "carrot_0")
    body.add_geom(
        name=f"object_{slot}_collision",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[0.04, 0.014, 0.014],
        rgba=[0, 0, 0, 0],
        group=3,
        mass=0.035,
        friction=[1.2, 0.02, 0.002],
        condim=4,
        solref=[0.004, 1],
    )


def _add_receptacle_slot(spec: Any, slot: int) -> None:
    body = spec.worldbody.add_body(name=f"receptacle_{slot}")
    _visual(body, f"receptacle_{slot}_visual", "plate")
    body.add_geom(
        name=f"receptacle_{slot}_collision",
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=[0.05, RECEPTACLE_THICKNESS_M / 2, 0],
        pos=[0, 0, RECEPTACLE_THICKNESS_M / 2],
        rgba=[0, 0, 0, 0],
        group=3,
        friction=[1.0, 0.01, 0.001],
    )


def _soften_fingers(spec: Any) -> None:
    for geom in spec.geoms:
        is_finger = geom.parent.name.startswith("carriage")
        if is_finger and geom.classname is not None and geom.classname.name == "collision":
            geom.friction = [1.5, 0.02, 0.002]
            geom.condim = 4
            geom.solref = [0.004, 1]
