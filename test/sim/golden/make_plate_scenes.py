"""Writes plate_scenes.json: what the authors' own code draws for some episode numbers.

    python make_plate_scenes.py BLINDVLA_CLONE ASSETS > plate_scenes.json

BLINDVLA_CLONE is github.com/CognitiveAISystems/BlindVLA, whose environments are run as they are,
without a simulator: only the methods that choose. ASSETS is the folder of `vla-align assets`.
"""

from __future__ import annotations

import json
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

FILE = "ManiSkill/mani_skill/envs/tasks/digital_twins/bridge_dataset_eval/put_on_in_scene_multi.py"
PARENTS = {
    "PutOnArrowSignInSceneMulti": "PutOnWeatherIconInSceneMulti",
    "PutOnPublicInfoSignInSceneMulti": "PutOnWeatherIconInSceneMulti",
    "PutOnColorInSceneMulti": "PutOnShapeInSceneMultiColor",
    "PutOnPlateInScene25VisionTexture05": "PutOnPlateInScene25VisionTexture03",
    "PutOnPlateInScene25VisionWhole05": "PutOnPlateInScene25VisionWhole03",
    "PutOnPlateInScene25MainV3": "PutOnPlateInScene25",
}
CLASSES = {"PutOnPlateInScene25Main": "PutOnPlateInScene25MainV3"}
CLASSES["PutOnPlateInScene25PositionChangeTo"] = "PutOnPlateInScene25PositionChange"
NUMBERS = 6


def turn(_roll: float, _pitch: float, yaw: float) -> Any:
    return np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])


def find_method(source: str, name: str, method: str) -> Any:
    """A method of a class of the file, or of its parents, as a plain function."""
    body = source[source.index(f"class {name}(") :]
    body = body[: body.find("\n@register_env")] if "\n@register_env" in body else body
    start = body.find(f"    def {method}(")
    if start < 0:
        return find_method(source, PARENTS.get(name, "PutOnPlateInScene25MainV3"), method)
    body = body[start:]
    ends = [body.find(end, 10) for end in ("\n    def ", "\n    @", "\n\n\n")]
    names = {"np": np, "torch": torch, "euler2quat": turn, "print": lambda *_: None}
    exec(textwrap.dedent(body[: min(e for e in [*ends, len(body)] if e > 0)]), names)
    return names[method]


def read_list(assets: Path, folder: str) -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = json.loads(
        (assets / "carrot" / folder / "model_db.json").read_text()
    )
    return loaded


def draw(source: str, assets: Path, env: Any, number: int) -> dict[str, Any]:
    """What the public code makes of a number, in indices of the lists."""
    from vla_align_ros.sim.put_on_plate.layout import COLORS, SHAPES

    name = env.public.rsplit("-", 1)[0]
    name = CLASSES.get(name, name)
    me = types.SimpleNamespace(num_envs=1, device="cpu", shape_types=SHAPES, color_types=COLORS)
    me.model_db_carrot = read_list(assets, "more_carrot")
    me.model_db_plate = read_list(assets, env.boards or "more_plate")
    if env.boards is None and not name.endswith("Plate"):
        me.model_db_plate = dict(list(me.model_db_plate.items())[:1])
    me.carrot_names, me.plate_names = list(me.model_db_carrot), list(me.model_db_plate)
    me.overlay_images_numpy = list(range(21))
    find_method(source, name, "_generate_init_pose")(me)
    options = {"obj_set": "train" if env.axis == "none" else "test"}
    options["episode_id"] = torch.tensor([number])
    find_method(source, name, "_initialize_episode_pre")(me, torch.arange(1), options)
    place, heading = int(me.select_pos_ids[0]), int(me.select_quat_ids[0])
    seen = {
        "env": env.name,
        "number": number,
        "instruction": find_method(source, name, "get_language_instruction")(me)[0],
        "table": int(me.select_overlay_ids[0]),
        "object": int(me.select_carrot_ids[0]),
        "plate": int(me.select_plate_ids[0]),
        "positions_m": np.asarray(me.xyz_configs[place]).round(6).tolist(),
        "quaternion": np.asarray(me.quat_configs[heading][0]).round(6).tolist(),
    }
    for key in ("extra", "shape1", "shape2", "shape3", "left", "right"):
        if hasattr(me, f"select_{key}_ids"):
            seen[key] = int(getattr(me, f"select_{key}_ids")[0])
    if env.joint_offsets:
        seen["joint_offsets"] = me.robot_qpos[seen["extra"]].round(6).tolist()
    return seen


def main() -> None:
    from vla_align_ros.sim.put_on_plate.assets import read_assets
    from vla_align_ros.sim.put_on_plate.environments import ENVIRONMENTS
    from vla_align_ros.sim.put_on_plate.layout import draw_number

    source, assets = (Path(sys.argv[1]) / FILE).read_text(), Path(sys.argv[2])
    lists = read_assets(assets)
    scenes = [
        draw(source, assets, env, draw_number(env, lists, seed))
        for env in ENVIRONMENTS.values()
        for seed in range(NUMBERS)
    ]
    print("[\n" + ",\n".join(json.dumps(scene) for scene in scenes) + "\n]")


if __name__ == "__main__":
    main()
