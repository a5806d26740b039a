"""Encodes and decodes the cameras' mp4 files (PyAV), one frame in, the same frame out.

Frames are told apart by their time stamps: frame n of a file of rate r is the one shown at n / r.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vla_align_ros.errors import DataError

# Every second frame is a key frame (random access); no B-frames (order in = order out); the
# quality keeps small objects sharp, because a policy reads centimetres from a few pixels.
# Colour keeps full resolution (4:4:4): at 224 px halved colour blurs the very thing that a word
# such as "carrot" is bound to (on the table-top 44 dB against 39 dB, at the same file size).
PIXEL_FORMAT = "yuv444p"
_ENCODER_OPTIONS = {"crf": "15", "g": "2", "bf": "0", "preset": "veryfast", "threads": "1"}
# libswscale: bicubic, full chroma, accurate rounding, the same bytes on every machine. Its default
# rounds down and darkens pictures by one level, which the robot's own camera would not.
_SWS_FLAGS = 0x4 | 0x2000 | 0x4000 | 0x40000 | 0x80000
_WITHOUT_SEEKING = 4  # frames further on that decoding reaches sooner than a seek
_MEND = (
    "download or collect the data set again; `vla-align data check DIR` lists what is damaged,"
    " --set data.skip_broken=true trains without it"
)


def encode_video(
    path: Path, frames: Iterable[np.ndarray], fps: int, *, pixel_format: str = PIXEL_FORMAT
) -> int:
    """Write (H, W, 3) uint8 RGB frames as H.264; return how many were written.

    The file is not atomic: the caller renames it.
    """
    import av

    count = 0
    with av.open(str(path), "w", format="mp4") as container:
        stream = None
        for image in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=fps, options=_ENCODER_OPTIONS)
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = pixel_format
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            planes = frame.reformat(format=pixel_format, interpolation=_SWS_FLAGS)
            container.mux(stream.encode(planes))
            count += 1
        if stream is None:
            raise DataError(
                "There is nothing to encode",
                got="no frame",
                expected="at least one frame",
                fix="write a shard only when it holds an episode",
            )
        container.mux(stream.encode(None))
    return count


def decode_video(path: Path) -> Iterator[np.ndarray]:
    """Yield every frame of an mp4 in order as (H, W, 3) uint8 RGB."""
    with _open_video(path) as (container, stream):
        to_rgb = _make_converter()
        for frame in container.decode(stream):
            yield to_rgb(frame)


def decode_numbered(path: Path, rate_hz: float) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number, (H, W, 3) uint8 RGB) of every frame in order; numbers by the time stamps."""
    with _open_video(path) as (container, stream):
        to_rgb = _make_converter()
        for frame in container.decode(stream):
            yield _number_of(frame, stream, rate_hz), to_rgb(frame)


def count_frames(path: Path, rate_hz: float) -> set[int]:
    """Numbers of the frames that an mp4 holds, from its packets alone: nothing is decoded."""
    with _open_video(path) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.pts is not None]
        return {_number_of(packet, stream, rate_hz) for packet in packets}


class VideoReader:
    """Random access to the frames of one mp4. Not safe for use by two threads at once."""

    def __init__(self, path: Path, rate_hz: float) -> None:
        """Open the file; DataError if it is no whole mp4."""
        self._path, self._rate_hz = path, rate_hz
        self._stack = contextlib.ExitStack()
        self._container, self._stream = self._stack.enter_context(_open_video(path))
        self._to_rgb = _make_converter()
        self._frames: Iterator[Any] | None = None
        self._last: tuple[int, Any] | None = None

    def frame(self, number: int) -> np.ndarray:
        """Frame `number` as (H, W, 3) uint8 RGB; decodes from the key frame before it.

        Frames that are asked for in rising order, a few apart, are decoded in one go.
        """
        with _named_errors(self._path):
            behind = self._last is None or not 0 <= number - self._last[0] <= _WITHOUT_SEEKING
            if self._frames is None or behind:
                self._seek(number)
            if self._last is not None and self._last[0] == number:
                return self._to_rgb(self._last[1])
            for frame in self._frames or ():
                found = _number_of(frame, self._stream, self._rate_hz)
                self._last = (found, frame)
                if found >= number:
                    break
            if self._last is None or self._last[0] != number:
                raise DataError(
                    f"The video {self._path} lacks frame {number}",
                    got="its end" if self._last is None else f"frame {self._last[0]}",
                    expected=f"a frame shown at {number / self._rate_hz:.3f} s",
                    fix=_MEND,
                )
            return self._to_rgb(self._last[1])

    def close(self) -> None:
        """Close the file."""
        self._frames = self._last = None
        self._stack.close()

    def _seek(self, number: int) -> None:
        # A quarter of a frame late: rounding must not land on the key frame after the one wanted.
        at = (number + 0.25) / self._rate_hz / float(self._stream.time_base)
        self._container.seek(int(at) + (self._stream.start_time or 0), stream=self._stream)
        self._frames, self._last = self._container.decode(self._stream), None


@contextlib.contextmanager
def _open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    import av

    with _named_errors(path), av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        yield container, stream


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    import av

    try:
        yield
    except (av.FFmpegError, OSError, IndexError) as error:
        raise DataError(
            f"The video {path} cannot be read",
            got=str(error),
            expected="a complete mp4",
            fix=_MEND,
        ) from error


def _number_of(frame: Any, stream: Any, rate_hz: float) -> int:
    """Number of a frame or packet; a stream that starts late is taken to start at 0."""
    ticks = int(frame.pts) - int(stream.start_time or 0)
    return round(ticks * float(stream.time_base) * rate_hz)


def _make_converter() -> Callable[[Any], np.ndarray]:
    """A function from a frame to (H, W, 3) uint8 RGB, for one thread; it keeps its tables."""
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()

    def to_rgb(frame: Any) -> np.ndarray:
        converted = reformatter.reformat(frame, format="rgb24", interpolation=_SWS_FLAGS)
        pixels: np.ndarray = converted.to_ndarray()
        return pixels

    return to_rgb
