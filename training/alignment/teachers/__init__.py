"""Frozen vision teachers behind one protocol."""

from training.alignment.teachers.base import Teacher
from training.alignment.teachers.config import TeacherConfig
from training.alignment.teachers.embedded import EmbeddedTeacher
from training.alignment.teachers.registry import build_teacher, describe_teachers

__all__ = [
    "EmbeddedTeacher",
    "Teacher",
    "TeacherConfig",
    "build_teacher",
    "describe_teachers",
]
