"""Visual representation alignment (arXiv 2510.25616)."""

from training.alignment.aligner import Aligner, AlignmentConfig
from training.alignment.loss import cosine_alignment_loss
from training.alignment.projector import FrozenMlpProjector
from training.alignment.teacher import EmbeddedTeacher, Teacher

__all__ = [
    "Aligner",
    "AlignmentConfig",
    "EmbeddedTeacher",
    "FrozenMlpProjector",
    "Teacher",
    "cosine_alignment_loss",
]
