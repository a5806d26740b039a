"""OpenVLA's published checkpoints: read, described, and written back in their own layout."""

from training.model.openvla.configuration import openvla_7b_json, openvla_config
from training.model.openvla.files import find_folder, open_shards
from training.model.openvla.keys import compare_tensors, find_carried, to_ours, to_published
from training.model.openvla.load import OpenVlaCheckpoint, build_empty, load_openvla
from training.model.openvla.processor import (
    build_openvla_processor,
    build_openvla_tokenizer,
    read_image_transform,
    read_norm_stats,
    read_statistics,
    write_statistics,
)
from training.model.openvla.save import write_openvla, write_openvla_adapter

__all__ = [
    "OpenVlaCheckpoint",
    "build_empty",
    "build_openvla_processor",
    "build_openvla_tokenizer",
    "compare_tensors",
    "find_carried",
    "find_folder",
    "load_openvla",
    "open_shards",
    "openvla_7b_json",
    "openvla_config",
    "read_image_transform",
    "read_norm_stats",
    "read_statistics",
    "to_ours",
    "to_published",
    "write_openvla",
    "write_openvla_adapter",
    "write_statistics",
]
