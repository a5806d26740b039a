"""A run may start from a finished one: its network, its words, other settings and data."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import SHORT, read_weights

from training.model.checkpoint import read_json
from training.preview import preview
from training.run_folder import Run
from training.train import train
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import ConfigurationError


@pytest.fixture(scope="module")
def second(short: Path, tabletop_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps more, from another seed and without alignment."""
    out = tmp_path_factory.mktemp("second")
    settings = (*SHORT, "optim.steps=2", "optim.vision_from_step=0", "optim.warmup_steps=1")
    settings += ("optim.vision_warmup_steps=1", "alignment.weight=0", "seed=7")
    train("debug_cpu", [tabletop_data], out, base=str(short), settings=settings, progress=False)
    return out


def test_it_begins_where_the_other_ended(short: Path, second: Path) -> None:
    begun = dict(Run.open(second).load_before().state_dict())
    ended = dict(Run.open(short).load_after().state_dict())
    assert begun.keys() == ended.keys()
    assert all(begun[name].equal(ended[name]) for name in begun)


def test_it_moves_on_and_keeps_shape_and_words(short: Path, second: Path) -> None:
    before, after = read_weights(short), read_weights(second)
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)
    assert read_json(short / "model.json") == read_json(second / "model.json")
    words = [Processor.load(run / "processor").tokenizer.content for run in (short, second)]
    assert words[0] == words[1]


def test_a_dry_run_reckons_the_networks_own_parameters(short: Path) -> None:
    told = preview("debug_cpu", base=str(short))
    assert told["parameters"] == sum(value.numel() for value in read_weights(short).values())


def test_a_folder_that_is_nothing_is_refused(tmp_path: Path, tabletop_data: Path) -> None:
    with pytest.raises(ConfigurationError, match="not found"):
        train("debug_cpu", [tabletop_data], tmp_path / "out", base=str(tmp_path / "nowhere"))
