"""Encodes and decodes the cameras' mp4 files (PyAV), one frame in, the same frame out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

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
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            for frame in container.decode(stream):
                yield frame.to_ndarray(format="rgb24", interpolation=_SWS_FLAGS)
    except (av.FFmpegError, IndexError) as error:
        raise DataError(
            f"The video {path} cannot be read",
            got=str(error),
            expected="a complete mp4",
            fix="delete the dataset's damaged file and collect again",
        ) from error
