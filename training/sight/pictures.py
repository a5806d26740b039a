"""Labelled pictures for the linear probe: drawings on varied backgrounds, or a folder's own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from training.sight.drawings import find_drawings, list_drawings, render_drawing
from vla_align_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURE_PX = 224
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_SEED = 7


@dataclass(frozen=True, slots=True, eq=False)
class LabelledPictures:
    """Pictures of things with the things' labels.

    images (n, 224, 224, 3) uint8 RGB; labels (n,) int64 into `names`; things (n,) int64: equal for
    views of the same thing.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    things: NDArray[np.int64]

    def find(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Where the pictures of these labels stand, rising."""
        return np.flatnonzero(np.isin(self.labels, [self.names.index(name) for name in names]))

    def only(self, names: Sequence[str]) -> LabelledPictures:
        """The pictures of these labels alone, numbered in this order."""
        numbers = {self.names.index(name): new for new, name in enumerate(names)}
        kept = self.find(names)
        labels = np.array([numbers[int(old)] for old in self.labels[kept]], dtype=np.int64)
        return LabelledPictures(self.images[kept], labels, tuple(names), self.things[kept])

    @property
    def fingerprint(self) -> str:
        """Hash of pictures and labels, 16 hex digits."""
        digest = hashlib.sha256(self.images.tobytes())
        digest.update(self.labels.tobytes() + repr(self.names).encode())
        return digest.hexdigest()[:16]


def load_pictures(folder: str | None, things: int, views: int) -> LabelledPictures | None:
    """The folder's pictures, or the drawings in the wheel emosvg; None without folder and wheel.

    Up to `things` of a label, each shown `views` times. The same settings give the same pictures on
    every machine that has the same files and library versions.
    """
    if folder is not None:
        return read_folder(Path(folder), things, views)
    drawings = find_drawings()
    if drawings is None:
        return None
    files = pick_evenly(list_drawings(drawings), things)
    return _show([(label, render_drawing(path)) for label, path in files], views)


def read_folder(root: Path, things: int, views: int) -> LabelledPictures:
    """Read <root>/<label>/**/<picture>; what is transparent is shown on a background.

    Raises:
        ConfigurationError: if there are not two labels with pictures, or one cannot be read.
    """
    labels = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found = [
        (label.name, path)
        for label in labels
        for path in sorted(p for p in label.rglob("*") if p.suffix.lower() in SUFFIXES)
    ]
    if len({name for name, _ in found}) < 2:
        raise ConfigurationError(
            "No labelled pictures",
            got=f"{len(found)} pictures of {len({name for name, _ in found})} labels in {root}",
            expected="a folder of two or more folders, each named for what its pictures show",
            fix="correct --set watch.pictures=..., or leave it out",
        )
    return _show([(name, _read(path)) for name, path in pick_evenly(found, things)], views)


def pick_evenly(found: list[tuple[str, Path]], things: int) -> list[tuple[str, Path]]:
    """Up to `things` entries of each label, spread evenly over its list."""
    picked = []
    for label in dict.fromkeys(name for name, _ in found):
        own = [entry for entry in found if entry[0] == label]
        count = min(things, len(own))
        picked += [own[round(k)] for k in np.linspace(0, len(own) - 1, count)]
    return picked


def _read(path: Path) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):  # Pillow would make all above 255 white
                raise ValueError("grey in more than 8 bits")
            return np.asarray(image.convert("RGBA"))
    except (OSError, ValueError, UnidentifiedImageError) as error:
        raise ConfigurationError(
            "A labelled picture cannot be read",
            got=f"{path}: {error}",
            expected="a picture of 8 bits a channel",
            fix="remove or replace it",
        ) from error


def _show(things: list[tuple[str, NDArray[np.uint8]]], views: int) -> LabelledPictures:
    names = tuple(dict.fromkeys(name for name, _ in things))
    shape = (len(things) * views, PICTURE_PX, PICTURE_PX, 3)
    images = np.empty(shape, dtype=np.uint8)
    for number, (_, rgba) in enumerate(things):
        for view in range(views):
            rng = np.random.default_rng([_SEED, number, view])
            images[number * views + view] = place(rgba, rng)
    labels = np.repeat([names.index(name) for name, _ in things], views)
    return LabelledPictures(
        images, labels.astype(np.int64), names, np.repeat(np.arange(len(things)), views)
    )


def place(rgba: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Show (H, W, 4) RGBA on a random background, (224, 224, 3) RGB.

    What is transparent somewhere is a thing: it gets a random size (45 to 85 % of the side), place
    and mirroring. What is opaque is a photograph: it fills the square, its middle cut out.
    """
    from PIL import Image

    image = Image.fromarray(rgba)
    if rgba[..., 3].min() == 255:
        return _fill(image)
    canvas = Image.fromarray(draw_background(rng)).convert("RGBA")
    share = rng.uniform(0.45, 0.85)
    scale = share * PICTURE_PX / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    corner = tuple(int(rng.integers(0, PICTURE_PX - side + 1)) for side in small.size)
    canvas.alpha_composite(small, (corner[0], corner[1]))
    return np.asarray(canvas.convert("RGB"))


def draw_background(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A smooth random gradient, (224, 224, 3): one of 3 x 3 random colours in each part."""
    from PIL import Image

    patches = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    return np.asarray(patches.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BICUBIC))


def _fill(image: Image) -> NDArray[np.uint8]:
    from PIL import ImageOps

    square = ImageOps.fit(image.convert("RGB"), (PICTURE_PX, PICTURE_PX))
    return np.asarray(square)
