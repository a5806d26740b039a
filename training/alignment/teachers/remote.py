"""Runs the Python code that a teacher's repository brings, and only where that was asked for."""

from __future__ import annotations

import hashlib
import inspect
import sys
from typing import Any

import torch

from training.alignment.teachers.base import ModuleTeacher
from training.alignment.teachers.config import TeacherConfig
from training.alignment.teachers.sources import Source
from training.fingerprint import fingerprint_architecture
from vla_align_ros.errors import ConfigurationError


def require_opt_in(config: TeacherConfig, reason: str) -> None:
    """Refuse a repository that only its own code can read, unless `remote_code` is set."""
    if not config.remote_code:
        raise ConfigurationError(
            f"The teacher {config.name} needs code from its repository",
            got=f"remote_code false, and {reason}",
            expected="a layout that can be read without that code, or a word that it may run",
            fix="read the repository's code, then --set teacher.remote_code=true and"
            " teacher.revision to the commit that you read",
        )


def load_remote(source: Source, dtype: torch.dtype) -> Any:
    """Build the repository's own model by its own code (`auto_map`'s AutoModel)."""
    from transformers import AutoModel

    auto_map = source.read_config().get("auto_map", {})
    if "AutoModel" not in auto_map:
        raise source.refuse(
            "remote_code true, and no AutoModel in the auto_map of config.json",
            "a repository that brings its model's code",
            "set teacher.remote_code=false",
        )
    try:
        return AutoModel.from_pretrained(
            source.location, revision=source.revision, trust_remote_code=True, dtype=dtype
        )
    except (ImportError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise source.refuse(
            " ".join(lines[:2]),
            "code and weights that load here",
            "install what the repository's code imports, or set teacher.remote_code=false",
        ) from error


def fingerprint_code(model: Any) -> str:
    """Hash of the source of the model's module, so that another revision has other caches."""
    text = inspect.getsource(sys.modules[type(model).__module__])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def refuse_layer(config: TeacherConfig) -> None:
    """A repository's own code offers its output alone."""
    if config.layer is not None:
        raise ConfigurationError(
            f"The teacher {config.name} gives its own output only",
            got=f"layer {config.layer} with remote_code true",
            expected="layer null, or remote_code false",
            fix="unset one of teacher.layer and teacher.remote_code",
        )


class RemoteTeacher(ModuleTeacher):
    """A teacher whose features come out of its repository's own code."""

    def __init__(
        self,
        config: TeacherConfig,
        model: Any,
        recipe: Any,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        refuse_layer(config)
        super().__init__(
            config.name,
            model,
            recipe.choose(config.pixels),
            dtype=dtype,
            device=device,
            decides=f"remote code {fingerprint_code(model)}"
            f" {fingerprint_architecture(model.config)}",
        )
