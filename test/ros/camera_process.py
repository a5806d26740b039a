"""A camera as a process: 640 x 480 rgb8 at 30 Hz, best effort, to the topic given, for a time."""

from __future__ import annotations

import array
import sys
import time

import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

RATE_HZ, HEIGHT, WIDTH = 30.0, 480, 640


def main(topic: str, seconds: float) -> None:
    rclpy.init()
    node = rclpy.create_node("camera")
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    publisher = node.create_publisher(Image, topic, qos)
    message = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH)
    message.data = array.array("B", bytes([128]) * (3 * WIDTH * HEIGHT))
    while not publisher.get_subscription_count():
        time.sleep(0.01)
    print("seen", flush=True)
    start_s = time.monotonic()
    for k in range(int(seconds * RATE_HZ)):
        message.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(message)
        time.sleep(max(0.0, start_s + (k + 1) / RATE_HZ - time.monotonic()))
    node.destroy_node()
    rclpy.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
