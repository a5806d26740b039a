"""The thirteen put-on-plate environments and the eight VL-Think boards: what each one varies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_align_ros.errors import ConfigurationError, SimulationError

Axis = Literal["none", "semantic", "vision", "execution", "reading"]
Blend = Literal["none", "foreground", "whole"]
Places = Literal["pairs", "outer_pairs", "object_triples", "plate_triples", "boards"]

MAX_STEPS = 80
CONTROL_HZ = 5.0
MOVE_AT_STEP = 5
FULL_SIZE_PX = (640, 480)

# The simulator's truth about a scene, see `labels`.
ENVIRONMENT_STATE_NAMES = (
    *("object_x", "object_y", "object_z", "object_yaw", "object_u", "object_v"),
    *("receptacle_x", "receptacle_y", "receptacle_u", "receptacle_v", "held"),
)

TRAIN_OBJECTS, TEST_OBJECTS = range(16), range(16, 25)
TRAIN_PLATES, TEST_PLATES = range(1), range(1, 17)
TRAIN_TABLES, TEST_TABLES, ALL_TABLES = range(16), range(16, 21), range(21)
TEST_TEXTURES = range(1, 17)
TRAIN_TEMPLATES, TEST_TEMPLATES = range(1), range(1, 17)

# The public list has 21; its last four are never drawn. {object} is put on {plate}.
TEMPLATES = (
    "put {object} on {plate}",
    "Place the {object} on the {plate}",
    "set {object} on {plate}",
    "move the {object} to the {plate}",
    "Take the {object} and put it on the {plate}",
    "pick up {object} and set it down on {plate}",
    "please put the {object} on the {plate}",
    "Put {object} onto {plate}.",
    "place the {object} onto the {plate} surface",
    "Make sure {object} is on {plate}.",
    "on the {plate}, put the {object}",
    "put the {object} where the {plate} is",
    "Move the {object} from the table to the {plate}",
    "Move {object} so it\u2019s on {plate}.",
    "Can you put {object} on {plate}?",
    "{object} on the {plate}, please.",
    "the {object} should be placed on the {plate}.",
    "Lay the {object} down on the {plate}.",
    "could you place {object} over {plate}",
    "position the {object} atop the {plate}",
    "Arrange for the {object} to be resting on {plate}.",
)


@dataclass(frozen=True)
class Environment:
    """What an environment draws from. The defaults are the training distribution.

    `public` is the id in the authors' code. Ranges are positions in the lists of the assets.
    `extra_objects` and `extra_plates` count what may lie beside the named ones. `blend` mixes a
    texture at `mix` into the robot and the objects, or into the whole picture. A reading
    environment lays a carrot before boards from the folder `boards`, and says `sentence`.
    """

    name: str
    public: str
    axis: Axis
    objects: range = TRAIN_OBJECTS
    extra_objects: int = 0
    plates: range = TRAIN_PLATES
    extra_plates: int = 0
    tables: range = TRAIN_TABLES
    templates: range = TRAIN_TEMPLATES
    places: Places = "pairs"
    blend: Blend = "none"
    mix: float = 0.0
    joint_offsets: bool = False
    moves: bool = False
    boards: str | None = None
    sentence: str = ""


def _plate(name: str, public: str, axis: Axis, **changes: object) -> Environment:
    return Environment(name, f"PutOnPlateInScene25{public}", axis, **changes)  # type: ignore[arg-type]


def _boards(name: str, public: str, folder: str, sentence: str) -> Environment:
    return Environment(
        name,
        f"{public}-v1",
        "reading",
        objects=range(1),
        tables=ALL_TABLES,
        places="boards",
        boards=folder,
        sentence=sentence,
    )


TRAINING = _plate("Main", "Main-v3", "none")

PUT_ON_PLATE: tuple[Environment, ...] = (
    _plate("Carrot", "Carrot-v1", "semantic", objects=TEST_OBJECTS),
    _plate("Instruct", "Instruct-v1", "semantic", templates=TEST_TEMPLATES),
    _plate(
        "MultiCarrot",
        "MultiCarrot-v1",
        "semantic",
        objects=TEST_OBJECTS,
        extra_objects=len(TEST_OBJECTS) - 1,
        places="object_triples",
    ),
    _plate(
        "MultiPlate",
        "MultiPlate-v1",
        "semantic",
        plates=TEST_PLATES,
        extra_plates=len(TEST_PLATES) - 1,
        tables=ALL_TABLES,
        places="plate_triples",
    ),
    _plate("Plate", "Plate-v1", "semantic", plates=TEST_PLATES),
    _plate("VisionImage", "VisionImage-v1", "vision", tables=TEST_TABLES),
    _plate("VisionTexture03", "VisionTexture03-v1", "vision", blend="foreground", mix=0.3),
    _plate("VisionTexture05", "VisionTexture05-v1", "vision", blend="foreground", mix=0.5),
    _plate("VisionWhole03", "VisionWhole03-v1", "vision", blend="whole", mix=0.3),
    _plate("VisionWhole05", "VisionWhole05-v1", "vision", blend="whole", mix=0.5),
    _plate("Position", "Position-v1", "execution", places="outer_pairs"),
    _plate("EEPose", "EEPose-v1", "execution", joint_offsets=True),
    _plate(
        "PositionChangeTo",
        "PositionChangeTo-v1",
        "execution",
        places="object_triples",
        moves=True,
    ),
)

VL_THINK: tuple[Environment, ...] = (
    _boards("Color", "PutOnColorInSceneMulti", "more_shape", "put carrot on {color}"),
    _boards("Shape", "PutOnShapeInSceneMultiColor", "more_shape", "put carrot on {shape}"),
    _boards("Traffic", "PutOnSignTrafficInSceneMulti", "more_traffic", "put carrot on {sign} sign"),
    _boards("Laundry", "PutOnLaundryIconInSceneMulti", "more_laundry", "put carrot on {icon} icon"),
    _boards("Weather", "PutOnWeatherIconInSceneMulti", "more_weather", "put carrot on {name} icon"),
    _boards("Arrow", "PutOnArrowSignInSceneMulti", "more_arrows", "put carrot on {name} sign"),
    _boards(
        "Public", "PutOnPublicInfoSignInSceneMulti", "more_public_info", "put carrot on {sign} sign"
    ),
    _boards("Parity", "PutOnNumberInSceneParity", "more_numbers", "put carrot on {parity} number"),
)

SUITES: dict[str, tuple[Environment, ...]] = {"put_on_plate": PUT_ON_PLATE, "vl_think": VL_THINK}
ENVIRONMENTS: dict[str, Environment] = {
    env.name: env for env in (TRAINING, *PUT_ON_PLATE, *VL_THINK)
}


def find_environment(name: str) -> Environment:
    """The environment called `name`; ConfigurationError that lists the names otherwise."""
    try:
        return ENVIRONMENTS[name]
    except KeyError:
        raise ConfigurationError(
            "No such environment",
            got=repr(name),
            expected="one of " + ", ".join(ENVIRONMENTS),
            fix="pass one of these names",
        ) from None


def check_size(size_px: tuple[int, int]) -> tuple[int, int]:
    """Return a picture's width and height; SimulationError if the camera cannot have them."""
    width, height = size_px
    if width * 3 != height * 4 or not 64 <= width <= 1280:
        raise SimulationError(
            "Bad picture size",
            got=f"{width} x {height} px",
            expected="4:3, 64 to 1280 px wide",
            fix="take 320x240 or 640x480",
        )
    return width, height
