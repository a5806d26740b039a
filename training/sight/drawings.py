"""The labelled drawings in the wheel emosvg: OpenMoji's, CC BY-SA 4.0, as vector graphics."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.errors import ConfigurationError
from vla_align_ros.extras import pip_command

DRAWING_PX = 160  # the renderer's time grows with the pixels: 30 ms at 160
_FOLDER = Path("resources") / "openmoji-svg-color"

# Label -> its characters, grouped as in Unicode's list of emoji; drawings that differ by a ring
# or a number from each other are left out.
LABELS: dict[str, str] = {
    "mammal": "🐒🦍🐕🐩🐺🦊🦝🐈🦁🐅🐆🐎🦓🦌🐂🐄🐖🐏🐑🐪🦒🐘🦏🦛🐁🐀🐇🐿🦔🦇🐨🐼🦥🦦🦨🦘",
    "bird": "🦃🐓🐣🐤🐥🐦🐧🕊🦅🦆🦢🦉🦩🦚🦜🦤",
    "sea animal": "🐊🐢🐋🐬🦭🐟🐠🐡🦈🐙🐚🦀🦞🦐🦑🦪",
    "insect": "🐌🦋🐛🐜🐝🪲🐞🦗🪳🕷🦂🦟🪰🪱",
    "flower or tree": "💐🌸💮🌹🥀🌺🌻🌼🌷🌱🪴🌲🌳🌴🌵🌾🌿🍀🍁🍂🍃🍄",
    "fruit": "🍇🍈🍉🍊🍋🍌🍍🥭🍎🍏🍐🍑🍒🍓🫐🥝🍅🫒🥥",
    "vegetable": "🥑🍆🥔🥕🌽🌶🫑🥒🥬🥦🧄🧅🥜🌰",
    "meal": "🍞🥐🥖🥨🥯🥞🧇🧀🍖🍗🥩🍔🍟🍕🌭🥪🌮🌯🍳🥘🍲🥣🥗🍿🍱🍙🍛🍜🍝🍣🥟🍦🍩🍪🎂🍰🧁🥧🍫🍬🍭",
    "drink": "🍼🥛☕🫖🍵🍶🍾🍷🍸🍹🍺🍻🥂🥃🥤🧋🧃🧉",
    "building": "🏠🏡🏢🏣🏥🏦🏨🏪🏫🏬🏭🏯🏰💒🗼🗽⛪🕌🛕🕍⛩🏛🏟",
    "land vehicle": "🚂🚃🚄🚅🚆🚇🚈🚊🚌🚎🚐🚑🚒🚓🚕🚗🚙🛻🚚🚛🚜🏎🏍🛵🛺🚲🛴🛹",
    "ship or aircraft": "⛵🛶🚤🛳⛴🛥🚢✈🛩🛫🛬🪂🚁🚟🛰🚀🛸",
    "sky": "🌑🌒🌓🌕🌙🌚🌝🌞🪐⭐🌟🌠☁⛅⛈🌤🌧🌨🌩🌪🌈☂⚡❄☃🔥💧🌊",
    "clothing": "👓🕶🥽🥼🦺👔👕👖🧣🧤🧥🧦👗👘🥻🩱🩳👙👚👛👜👝🎒👞👟🥾🥿👠👡🩰👢👑👒🎩🎓🧢⛑",
    "instrument": "🎷🪗🎸🎹🎺🎻🪕🥁🪘🔔🎤📯",
    "tool": "🔨🪓⛏⚒🛠🗡⚔🪃🏹🛡🪚🔧🪛🔩⚙🗜⚖🔗⛓🪝🧰🧲🪜✂🖌🔑🗝",
    "device": "📱☎📞📟📠🔋🔌💻🖥🖨⌨🖱💾💿📀🎥📺📷📹📼🔦💡📡🔬🔭",
    "ball or sport": "⚽⚾🥎🏀🏐🏈🏉🎾🥏🎳🏏🏑🏒🥍🏓🏸🥊🥋🥅⛳⛸🎣🤿🎿🛷🥌🎯",
    "face": "😀😃😄😁😆😅🤣😂🙂😉😊😇🥰😍😘😋😛🤔🤐😐😑😏😒🙄😬😴🤒🤢🥶🥵😎😕😢😭😱😡",
    "hand": "👋🤚🖐✋🖖👌🤌🤏✌🤞🤟🤘🤙👈👉👆👇☝👍👎✊👊🤛🤜👏🙌👐🙏✍💪",
}


def find_drawings() -> Path | None:
    """The wheel's folder of drawings, or None without the wheel (which is not imported)."""
    spec = importlib.util.find_spec("emosvg")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / _FOLDER
    return folder if folder.is_dir() else None


def list_drawings(folder: Path) -> list[tuple[str, Path]]:
    """(label, file) of every drawing that the wheel has, label by label."""
    found = []
    for label, characters in LABELS.items():
        for character in characters:
            code = f"{ord(character):04X}"
            path = folder / f"{code}.svg"
            if not path.exists():
                path = folder / f"{code}-FE0F.svg"
            if path.exists():
                found.append((label, path))
    if not found:
        raise ConfigurationError(
            "The wheel emosvg has other drawings than expected",
            got=f"none of {sum(map(len, LABELS.values()))} in {folder}",
            expected="files such as 1F34E.svg",
            fix=pip_command("sight"),
        )
    return found


def render_drawing(path: Path) -> NDArray[np.uint8]:
    """A drawing as (160, 160, 4) uint8 RGBA with straight alpha."""
    try:
        import resvg_py
    except ImportError as error:
        raise ConfigurationError(
            "The drawings of the probe cannot be rendered",
            got=str(error),
            expected="the module resvg_py",
            fix=pip_command("sight"),
        ) from error
    from PIL import Image

    data = resvg_py.svg_to_bytes(
        svg_path=str(path), width=DRAWING_PX, height=DRAWING_PX, skip_system_fonts=True
    )
    with Image.open(io.BytesIO(bytes(data))) as image:
        return np.asarray(image.convert("RGBA"))
