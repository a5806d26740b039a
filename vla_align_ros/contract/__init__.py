"""What training and robot share, once: specs, images, actions, normalisation, prompt, bundle."""

from __future__ import annotations

from vla_align_ros.contract.actions import (
    GRIPPER_CONVENTIONS,
    GripperConvention,
    Pose,
    compose,
    delta_from_twist,
    difference,
    gripper_from_fraction,
    gripper_to_fraction,
    matrix_from_rotvec,
    matrix_from_rpy,
    rotvec_from_matrix,
    rpy_from_matrix,
    twist_from_delta,
)
from vla_align_ros.contract.bundle import Bundle, write_bundle
from vla_align_ros.contract.images import ImageTransform, decode_compressed, to_rgb
from vla_align_ros.contract.normalize import (
    Normalizer,
    Statistics,
    compute_statistics,
    load_statistics,
    save_statistics,
    select_statistics,
)
from vla_align_ros.contract.observation import ActionChunk, Observation
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.prompt import PromptTemplate, PromptTokenizer, clean_instruction
from vla_align_ros.contract.spec import (
    ACTION_DIM,
    ACTION_NAMES,
    ActionSpec,
    CameraSpec,
    PolicySpec,
    StateSpec,
    TensorSpec,
)

__all__ = [
    "ACTION_DIM",
    "ACTION_NAMES",
    "GRIPPER_CONVENTIONS",
    "ActionChunk",
    "ActionSpec",
    "Bundle",
    "CameraSpec",
    "GripperConvention",
    "ImageTransform",
    "Normalizer",
    "Observation",
    "PolicySpec",
    "Pose",
    "Processor",
    "PromptTemplate",
    "PromptTokenizer",
    "StateSpec",
    "Statistics",
    "TensorSpec",
    "clean_instruction",
    "compose",
    "compute_statistics",
    "decode_compressed",
    "delta_from_twist",
    "difference",
    "gripper_from_fraction",
    "gripper_to_fraction",
    "load_statistics",
    "matrix_from_rotvec",
    "matrix_from_rpy",
    "rotvec_from_matrix",
    "rpy_from_matrix",
    "save_statistics",
    "select_statistics",
    "to_rgb",
    "twist_from_delta",
    "write_bundle",
]
