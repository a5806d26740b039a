"""A camera driver as a process, which can be told to fail: the picture of a golden sample."""

from __future__ import annotations

import array
import io
import random
import signal
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import UInt64

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.ros.bench.control import Control
from vla_align_ros.ros.declarations import Declaration
from vla_align_ros.ros.params import declare_parameters
from vla_align_ros.ros.running import run_node

LATEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
SLOW_S = 1.0
DIE_S = 1e-3  # what it takes to send a picture and its number, about
ENCODINGS = {"mono16": 2, "bgr8": 3, "mono8": 1}
CAMERA_DECLARATIONS = (
    Declaration("bundle", "", "bundle whose first golden picture is shown"),
    Declaration("rate_hz", 30.0, "pictures a second", 1.0, 120.0),
    Declaration("width", 640, "columns", 8, 4096),
    Declaration("height", 480, "rows", 8, 4096),
    Declaration("compressed", False, "JPEG on ~/image/compressed instead of rgb8 on ~/image"),
    Declaration("count", False, "tell on ~/frames_sent how many pictures were sent"),
)


class CameraNode(Node):
    """Publishes one picture at a steady rate under fresh stamps, or as the control file says.

    Words: `ok`, `frozen` (the same stamp again and again), `slow` (one in `SLOW_S`), `silent`,
    `truncated` (half of the bytes), `mono16` (an encoding that nobody takes), `bgr8`, `mono8`,
    `half` (half the size), `zero_size`, `noise` (a JPEG of random bytes), `die` (is killed
    by the kernel in the act of sending a picture, or its number on `~/frames_sent`).
    """

    def __init__(self) -> None:
        super().__init__("camera_node")
        declare_parameters(self, CAMERA_DECLARATIONS)
        value = {d.name: self.get_parameter(d.name).value for d in CAMERA_DECLARATIONS}
        picture = read_picture(value["bundle"], value["width"], value["height"])
        self._compressed = bool(value["compressed"])
        self._control = Control.from_environment()
        self._raw = {word: make_raw(picture, word) for word in RAW_WORDS}
        self._jpeg = {"ok": make_jpeg(picture), "noise": make_noise(4096)}
        self._frozen: Any = None
        self._last_s = 0.0
        self._sent = 0
        self._counts = bool(value["count"])
        self._image = self.create_publisher(Image, "~/image", LATEST)
        self._packed = self.create_publisher(CompressedImage, "~/image/compressed", LATEST)
        self._count = self.create_publisher(UInt64, "~/frames_sent", RELIABLE)
        period_s = 1.0 / float(value["rate_hz"])
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(period_s, self._on_timer, clock=steady)

    def _on_timer(self) -> None:
        word, now_s = self._control.get(), time.monotonic()
        if word == "silent" or (word == "slow" and now_s - self._last_s < SLOW_S):
            return
        stamp = self.get_clock().now().to_msg()
        if word == "frozen":
            self._frozen = self._frozen or stamp
            stamp = self._frozen
        else:
            self._frozen = None
        self._last_s = now_s
        message = (
            self._jpeg["noise" if word == "noise" else "ok"]
            if self._compressed
            else self._raw.get(word, self._raw["ok"])
        )
        message.header.stamp = stamp
        if word == "die":  # by the default of SIGALRM: no Python runs any more; 0 would set none
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0, DIE_S) + 1e-6)
        (self._packed if self._compressed else self._image).publish(message)
        self._sent += 1
        if self._counts or word == "die":
            self._count.publish(UInt64(data=self._sent))


RAW_WORDS = ("ok", "truncated", "mono16", "bgr8", "mono8", "half", "zero_size")


def read_picture(bundle: str, width: int, height: int) -> NDArray[np.uint8]:
    """The first golden picture of a bundle as (height, width, 3) RGB."""
    opened = Bundle.open(bundle)
    first = opened.golden()[f"image_{opened.spec.cameras[0].name}"][0]
    return np.asarray(PillowImage.fromarray(first).resize((width, height)), np.uint8)


def make_raw(picture: NDArray[np.uint8], word: str) -> Image:
    """A raw picture as the word asks for it."""
    if word == "half":
        picture = np.ascontiguousarray(picture[::2, ::2])
    height, width = picture.shape[:2]
    if word == "bgr8":
        picture = np.ascontiguousarray(picture[..., ::-1])
    elif word == "mono8":
        picture = np.ascontiguousarray(picture[..., 0])
    data = picture.tobytes()
    if word == "mono16":
        data = data[: 2 * height * width]
    elif word == "truncated":
        data = data[: len(data) // 2]
    elif word == "zero_size":
        height, width, data = 0, 0, b""
    message = Image(height=height, width=width, encoding=word if word in ENCODINGS else "rgb8")
    message.step = width * ENCODINGS.get(word, 3)
    message.data = array.array("B", data)
    return message


def make_jpeg(picture: NDArray[np.uint8]) -> CompressedImage:
    """The picture as JPEG."""
    packed = io.BytesIO()
    PillowImage.fromarray(picture).save(packed, "JPEG", quality=90)
    return CompressedImage(format="jpeg", data=array.array("B", packed.getvalue()))


def make_noise(size: int) -> CompressedImage:
    """Bytes that are no picture."""
    noise = np.random.default_rng(0).integers(0, 256, max(size, 64), dtype=np.uint8)
    return CompressedImage(format="jpeg", data=array.array("B", noise.tobytes()))


def main(arguments: list[str] | None = None) -> None:
    """Run the camera until it is told to stop."""
    run_node(CameraNode, arguments=arguments)


if __name__ == "__main__":
    main()
