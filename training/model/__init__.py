"""The policy network: PrismaticVLA and its typed configuration."""

from training.model.action_tokens import ActionTokens
from training.model.config import (
    GroundingConfig,
    HeadConfig,
    LlmConfig,
    ProjectorConfig,
    StateConfig,
    VisionConfig,
    VlaConfig,
)
from training.model.grounding import GroundingHead, grounding_loss
from training.model.groups import GROUPS, group_of
from training.model.heads import chunk_l1_loss, displacement_l1_loss
from training.model.output import VlaOutput
from training.model.prismatic import PrismaticVLA

__all__ = [
    "GROUPS",
    "ActionTokens",
    "GroundingConfig",
    "GroundingHead",
    "HeadConfig",
    "LlmConfig",
    "PrismaticVLA",
    "ProjectorConfig",
    "StateConfig",
    "VisionConfig",
    "VlaConfig",
    "VlaOutput",
    "chunk_l1_loss",
    "displacement_l1_loss",
    "grounding_loss",
    "group_of",
]
