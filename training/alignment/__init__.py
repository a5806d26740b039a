"""Visual representation alignment (arXiv 2510.25616) and its variants."""

from training.alignment.aligner import Aligner
from training.alignment.config import AlignmentConfig
from training.alignment.loss import LOSSES, build_loss, cosine_alignment_loss
from training.alignment.projector import PROJECTORS, Projector, build_projector
from training.alignment.schedule import SCHEDULES
from training.alignment.targets import compute_targets
from training.alignment.teachers import EmbeddedTeacher, Teacher

__all__ = [
    "LOSSES",
    "PROJECTORS",
    "SCHEDULES",
    "Aligner",
    "AlignmentConfig",
    "EmbeddedTeacher",
    "Projector",
    "Teacher",
    "build_loss",
    "build_projector",
    "compute_targets",
    "cosine_alignment_loss",
]
