"""What the operator writes down while it works: lines of JSON, and a small film of each episode."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class JsonLines:
    """Appends one JSON object a line and flushes, so that a reader can follow the file live."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")

    def append(self, record: dict[str, Any]) -> None:
        """Write `record`; values must be JSON types."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; harmless when called twice."""
        self._file.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a JSON lines file, [] where it does not exist yet.

    A last line without its newline is still being written and is left out.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


class Film:
    """Encodes RGB pictures of one size to an H.264 mp4 that browsers play; light on the CPU.

    Its colours are kept for two by two pixels: an odd last row or column is left out.
    """

    def __init__(self, path: Path, *, rate_hz: float, preset: str = "veryfast") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        import av

        self._av = av
        self._container = av.open(str(path), "w", options={"movflags": "faststart"})
        self._rate = Fraction(rate_hz).limit_denominator(1000)
        self._preset = preset
        self._stream: Any = None
        self.frames = 0

    def add(self, image: NDArray[np.uint8]) -> None:
        """Append one (H, W, 3) uint8 RGB picture; H and W the same for the whole film."""
        image = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._rate)
            self._stream.height, self._stream.width = image.shape[:2]
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"preset": self._preset, "crf": "23"}
            self._stream.thread_count = 1
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def close(self) -> None:
        """Write what the encoder still holds and the file's index."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()

    def __enter__(self) -> Film:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EpisodeRecord:
    """One episode's film, what was said in it and when, and how many pictures arrived.

    Pictures count by their stamps, from after `begin` up to `end`, so that one which is still on
    its way when the episode ends is neither lost nor the next episode's.
    """

    def __init__(self, path: Path, *, rate_hz: float, begin: dict[str, Any]) -> None:
        self.path = path
        self.frames_received = 0
        self.spoken: list[dict[str, Any]] = []
        self.result: dict[str, Any] | None = None
        self._begin = begin
        self._begin_s, self._end_s = picture_stamp_s(begin), math.inf
        self._film = Film(path, rate_hz=rate_hz)
        self._period_s = 1.0 / rate_hz
        self._stamp_s = -math.inf

    def wants(self, stamp_s: float) -> bool:
        """Count a picture taken at `stamp_s`; True if it is due in the film."""
        if not self._begin_s < stamp_s <= self._end_s:
            return False
        self.frames_received += 1
        return stamp_s - self._stamp_s > 0.9 * self._period_s

    def add(self, image: NDArray[np.uint8], stamp_s: float) -> None:
        """Put a picture (H, W, 3) uint8 RGB into the film."""
        self._stamp_s = stamp_s
        self._film.add(image)

    def say(self, instruction: str, time_s: float) -> dict[str, Any]:
        """Note an instruction published at `time_s` of the episode."""
        spoken = {"instruction": instruction, "time_s": time_s, "film_frame": self._film.frames}
        self.spoken.append(spoken)
        return spoken

    def end(self, score: dict[str, Any], result: dict[str, Any]) -> None:
        """Keep the referee's `result`; pictures up to the one of `score` still count."""
        self._end_s = picture_stamp_s(score)
        self.result = {**result, "frames_sent": score["frames_sent"] - self._begin["frames_sent"]}

    def finish(self, root: Path) -> dict[str, Any]:
        """Close the film; the referee's result, completed with what was recorded."""
        self._film.close()
        return {
            **(self.result or {}),
            "frames_received": self.frames_received,
            "spoken": self.spoken,
            "film": self.path.relative_to(root).as_posix(),
            "film_frames": self._film.frames,
        }

    def close(self) -> None:
        """Close the film of an episode that was cut short."""
        self._film.close()


def picture_stamp_s(score: dict[str, Any]) -> float:
    """When the latest picture was taken that a score counts, in seconds of ROS time."""
    seconds, nanoseconds = score["image_stamp"]
    return float(seconds) + 1e-9 * float(nanoseconds)
