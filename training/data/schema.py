"""Names of what a collected dataset holds, so that collecting and training say them alike."""

from __future__ import annotations

from training.data.layout import DatasetSchema, Feature
from vla_align_ros.contract.spec import ACTION_DIM, ACTION_NAMES

TABLETOP, PUT_ON_PLATE = "tabletop", "put_on_plate"
VIDEO_KEY = "observation.images.front"
STATE_KEY = "observation.state"
ENVIRONMENT_KEY = "observation.environment_state"
ACTION_KEY = "action"
CHUNK_KEY = "action_chunk"
SEED_NOTE = "collect/env_seed"
START_NOTE = "collect/start"
ATTEMPT_NOTE = "collect/attempt"


def tabletop_schema(horizon: int = 8) -> DatasetSchema:
    """The features of a table-top dataset at 5 Hz."""
    from vla_align_ros.sim.labels import ENVIRONMENT_STATE_NAMES
    from vla_align_ros.sim.tabletop import CONTROL_HZ, tabletop_spec

    camera = tabletop_spec(horizon).cameras[0]
    size_px = (camera.width, camera.height)
    return _make_schema(CONTROL_HZ, "widowx_ai", size_px, ENVIRONMENT_STATE_NAMES, horizon)


def plate_schema(size_px: tuple[int, int], horizon: int = 8) -> DatasetSchema:
    """The features of a put-on-plate dataset at 5 Hz, pictures of `size_px` (width, height)."""
    from vla_align_ros.sim.put_on_plate.environments import CONTROL_HZ, ENVIRONMENT_STATE_NAMES

    return _make_schema(CONTROL_HZ, "widowx_250s", size_px, ENVIRONMENT_STATE_NAMES, horizon)


def _make_schema(
    rate_hz: float,
    robot: str,
    size_px: tuple[int, int],
    environment: tuple[str, ...],
    horizon: int,
) -> DatasetSchema:
    from vla_align_ros.sim.robot import STATE_NAMES

    width, height = size_px
    return DatasetSchema(
        fps=round(rate_hz),
        robot_type=robot,
        features={
            VIDEO_KEY: Feature("video", (height, width, 3), ("height", "width", "channels")),
            STATE_KEY: Feature("float32", (len(STATE_NAMES),), STATE_NAMES),
            ENVIRONMENT_KEY: Feature("float32", (len(environment),), environment),
            ACTION_KEY: Feature("float32", (ACTION_DIM,), ACTION_NAMES),
            CHUNK_KEY: Feature("float32", (horizon, ACTION_DIM)),
        },
    )
