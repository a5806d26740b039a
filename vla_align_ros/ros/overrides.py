"""Makes topics whose QoS a person may override by ROS's `qos_overrides` parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

from rclpy.event_handler import UnsupportedEventTypeError
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions

from vla_align_ros.errors import ConfigurationError

T = TypeVar("T")


def make_overridable(
    node: Node,
    topic: str,
    profile: QoSProfile,
    make: Callable[[QoSProfile, QoSOverridingOptions], T],
) -> T:
    """Call `make` with a profile of its own and the policies that may be overridden.

    rclpy writes an override into the very profile that it is given: one that topics share would
    carry it on to the next.

    Raises ConfigurationError on an override that is none.
    """
    try:
        return make(copy.copy(profile), QoSOverridingOptions.with_default_policies())
    except UnsupportedEventTypeError:
        raise
    except (ParameterException, RuntimeError) as error:  # an RCLError is a RuntimeError
        name = node.resolve_topic_name(topic)
        raise ConfigurationError(
            f"the topic {name} cannot be made with this QoS",
            got=error,
            expected="reliability reliable or best_effort, history keep_last or keep_all, "
            "a depth of at least 0",
            fix=f"correct the parameters below qos_overrides.{name}",
        ) from error
