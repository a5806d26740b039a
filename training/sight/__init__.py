"""Watching what training does to a policy's sight: drift, a probe, attention, one report."""

from training.sight.attention import AttentionMaps, measure_attention, relative_maps
from training.sight.cka import linear_cka
from training.sight.config import WatchConfig
from training.sight.page import write_report
from training.sight.pictures import LabelledPictures, load_pictures
from training.sight.probe import ProbeResult, cross_validate
from training.sight.reading import SightReading
from training.sight.scenes import scenes_from_golden
from training.sight.watch import SightWatch
from training.sight.writers import RunWriter, open_writer

__all__ = [
    "AttentionMaps",
    "LabelledPictures",
    "ProbeResult",
    "RunWriter",
    "SightReading",
    "SightWatch",
    "WatchConfig",
    "cross_validate",
    "linear_cka",
    "load_pictures",
    "measure_attention",
    "open_writer",
    "relative_maps",
    "scenes_from_golden",
    "write_report",
]
