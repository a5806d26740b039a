"""The film and the contact sheet of a demonstration, with instruction and outcome drawn in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vla_align_ros.ros.recording import Film

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

FILM_WIDTH_PX = 448
CAPTION_PX = 104
FILM_SPEED = 2.0  # the film plays this much faster than the robot moved
LAST_PICTURE_S = 1.0
SHEET_COLUMNS = 5
TILE_PX = 256
TILE_CAPTION_PX = 74
INK: Colour = (34, 40, 49)
PAPER: Colour = (250, 250, 247)
GREY: Colour = (110, 118, 129)
GOOD: Colour = (22, 128, 78)
BAD: Colour = (190, 50, 42)
CHANGE: Colour = (176, 104, 0)
FONT = cv2.FONT_HERSHEY_DUPLEX


def write_film(out: Path, episodes: Sequence[dict[str, Any]], rate_hz: float) -> Path:
    """`demo.mp4`: all episodes one after another, captioned. `rate_hz` is that of their films."""
    path = out / "demo.mp4"
    with Film(path, rate_hz=rate_hz * FILM_SPEED) as film:
        successes = 0
        for count, episode in enumerate(episodes, start=1):
            pictures = read_film(out / episode["film"])
            successes += episode["success"]
            last: Picture | None = None
            for index, picture in enumerate(pictures):
                said = said_at(episode, index)
                status = f"episode {count}/{len(episodes)}   {index / rate_hz:4.1f} s"
                last = caption(picture, said, status, GREY, was_switched(episode, said))
                film.add(last)
            if last is None:
                continue
            colour = GOOD if episode["success"] else BAD
            status = f"{describe_outcome(episode)}   {successes} of {count} so far"
            verdict = caption(picture, said, status, colour, was_switched(episode, said))
            for _ in range(round(LAST_PICTURE_S * rate_hz * FILM_SPEED)):
                film.add(verdict)
    return path


def write_contact_sheet(out: Path, episodes: Sequence[dict[str, Any]]) -> Path:
    """`contact_sheet.png`: the last picture of every episode with its instruction and outcome."""
    tiles = [draw_tile(episode, list(read_film(out / episode["film"]))) for episode in episodes]
    columns = min(SHEET_COLUMNS, len(tiles))
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[k : k + columns]) for k in range(0, len(tiles), columns)]
    path = out / "contact_sheet.png"
    cv2.imwrite(str(path), cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))
    return path


def read_film(path: Path) -> Iterator[Picture]:
    """The pictures (H, W, 3) uint8 RGB of a film, in order."""
    import av

    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def said_at(episode: dict[str, Any], film_frame: int) -> str:
    """The instruction that was in force when a picture of the film was taken."""
    said = [s["instruction"] for s in episode["spoken"] if s["film_frame"] <= film_frame]
    return str(said[-1] if said else episode["spoken"][0]["instruction"])


def was_switched(episode: dict[str, Any], said: str) -> bool:
    """Whether `said` came in the middle of the episode, in place of another instruction."""
    return len(episode["spoken"]) > 1 and said != episode["spoken"][0]["instruction"]


def describe_outcome(episode: dict[str, Any]) -> str:
    """The verdict of an episode in a few words."""
    time_s = f"{episode['time_s']:.1f} s"
    if episode["success"]:
        return f"success in {time_s}"
    words = {"timeout": "time is up", "other_task_done": "did the other task"}
    return f"{words.get(episode['outcome'], episode['outcome'])} after {time_s}"


def caption(picture: Picture, said: str, status: str, colour: Colour, switched: bool) -> Picture:
    """A picture of the film: the instruction and a status line above the camera's view."""
    view = cv2.resize(picture, (FILM_WIDTH_PX, FILM_WIDTH_PX), interpolation=cv2.INTER_CUBIC)
    strip = np.full((CAPTION_PX, FILM_WIDTH_PX, 3), PAPER, np.uint8)
    write(strip, status, (16, 28), 0.5, colour)
    write(strip, said, (16, 62), 0.66, CHANGE if switched else INK)
    if switched:
        write(strip, "instruction switched", (16, 86), 0.45, CHANGE)
    return np.vstack([strip, view])


def draw_tile(episode: dict[str, Any], pictures: Sequence[Picture]) -> Picture:
    """One tile of the contact sheet: last picture, first one inset, instruction, verdict."""
    colour = GOOD if episode["success"] else BAD
    tile = np.full((TILE_PX + TILE_CAPTION_PX, TILE_PX, 3), 255, np.uint8)
    inner = TILE_PX - 12
    if pictures:
        tile[6 : 6 + inner, 6 : 6 + inner] = cv2.resize(pictures[-1], (inner, inner))
        inset = inner // 3
        corner = cv2.resize(pictures[0], (inset, inset), interpolation=cv2.INTER_AREA)
        tile[6 : 6 + inset, 6 : 6 + inset] = corner
        cv2.rectangle(tile, (6, 6), (6 + inset, 6 + inset), PAPER, 1)
    cv2.rectangle(tile, (3, 3), (TILE_PX - 4, TILE_PX - 4), colour, 3)
    said = [spoken["instruction"] for spoken in episode["spoken"]]
    write(tile, f"{episode['episode'] + 1}  {said[0]}", (6, TILE_PX + 16), 0.42, INK)
    if len(said) > 1:
        write(tile, f"then: {said[-1]}", (6, TILE_PX + 36), 0.42, CHANGE)
    elif episode["swapped"]:
        write(tile, f"judged: {episode['judged_instruction']}", (6, TILE_PX + 36), 0.42, CHANGE)
    write(tile, describe_outcome(episode), (6, TILE_PX + 58), 0.46, colour)
    return tile


def write(picture: Picture, text: str, at: tuple[int, int], scale: float, colour: Colour) -> None:
    """Draw a line of text at `at` (x, y of its base line), made smaller where it is too long."""
    room_px = picture.shape[1] - at[0] - 4
    (width_px, _), _ = cv2.getTextSize(text, FONT, scale, 1)
    fitted = min(scale, scale * room_px / max(width_px, 1))
    cv2.putText(picture, text, at, FONT, fitted, colour, 1, cv2.LINE_AA)
