"""Names of what a table-top dataset holds, so that collecting and training say them alike."""

from __future__ import annotations

from training.data.layout import DatasetSchema, Feature
from vla_align_ros.errors import DataError

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

    spec = tabletop_spec(horizon)
    camera, action = spec.cameras[0], spec.action
    if spec.state is None:
        raise DataError(
            "The table-top has no proprioception",
            got="a spec without state",
            expected="a StateSpec",
            fix="give tabletop_spec a StateSpec",
        )
    image = Feature("video", (camera.height, camera.width, 3), ("height", "width", "channels"))
    return DatasetSchema(
        fps=round(CONTROL_HZ),
        robot_type="widowx_ai",
        features={
            VIDEO_KEY: image,
            STATE_KEY: Feature("float32", (len(spec.state.names),), spec.state.names),
            ENVIRONMENT_KEY: Feature(
                "float32", (len(ENVIRONMENT_STATE_NAMES),), tuple(ENVIRONMENT_STATE_NAMES)
            ),
            ACTION_KEY: Feature("float32", (len(action.names),), action.names),
            CHUNK_KEY: Feature("float32", (horizon, len(action.names))),
        },
    )
