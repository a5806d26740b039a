"""A run may start from a finished one: its network, its words, other settings and data."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from lab_data import correct_tasks
from tiny_run import SHORT, read_weights

from training.config import RunConfig
from training.consolidate import consolidate
from training.data.sources import open_sources
from training.export.source import RunSource
from training.model.checkpoint import is_moved, read_json
from training.model.openvla import find_folder
from training.preview import preview
from training.recipes import find_recipe
from training.run_folder import Run
from training.settings import override
from training.setup_model import find_base
from training.setup_processor import build_processor
from training.sweep import SweepPlan, make_cells
from training.sweep_tables import Row
from training.train import train
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import ConfigurationError, DataError, TrainingError

SECOND = (
    *(*SHORT, "optim.steps=2", "optim.vision_from_step=0", "optim.warmup_steps=1"),
    *("optim.vision_warmup_steps=1", "alignment.weight=0", "seed=7"),
)


@pytest.fixture(scope="module")
def second(short: Path, tabletop_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps more, from another seed and without alignment."""
    out = tmp_path_factory.mktemp("second")
    train("debug_cpu", [tabletop_data], out, base=str(short), settings=SECOND, progress=False)
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


def test_words_that_the_base_does_not_know_are_refused_before_anything_is_decoded(
    short: Path, tabletop_data: Path, tmp_path: Path
) -> None:
    ignore = shutil.ignore_patterns("cache")
    data = Path(shutil.copytree(tabletop_data, tmp_path / "data", ignore=ignore))
    texts = open_sources([data])[0].reader.tasks
    old = texts[0]
    correct_tasks(data, lambda text: "fetch the banana" if text == old else text)
    with pytest.raises(DataError, match=r"not know: got fetch, banana in 'fetch the banana';") as e:
        train("debug_cpu", [data], tmp_path / "a", base=str(short), settings=SECOND, progress=False)
    assert "data.instructions" in str(e.value) and "--base" in str(e.value)
    assert not (data / "cache").exists()
    known = [text for text in texts if text != old]
    settings = (*SECOND, f"data.instructions={json.dumps(known)}", "data.validation=0.5")
    train("debug_cpu", [data], tmp_path / "b", base=str(short), settings=settings, progress=False)
    fresh = build_processor(find_recipe("debug_cpu"), open_sources([data]))
    assert fresh.tokenizer.unknown_words("fetch the banana") == ()


def test_a_run_may_be_taught_to_go_on_from_committed_actions(
    short: Path, tabletop_data: Path, tmp_path: Path
) -> None:
    """It begins as what it comes from, learns, and leaves what its export is proved on."""
    settings = (*SECOND, "model.head.committed=3", "optim.batch_size=8")
    options = {"base": str(short), "settings": settings, "progress": False}
    train("debug_cpu", [tabletop_data], tmp_path / "run", **options)
    run = Run.open(tmp_path / "run")
    before, after = run.load_before(), run.load_after()
    assert before.config.head.committed == after.config.head.committed == 3
    shared = Run.open(short).load_after().state_dict()
    assert all(
        shared[name].equal(value) for name, value in before.state_dict().items() if name in shared
    )
    assert not any(value.any() for value in before.committed.state_dict().values())
    assert after.committed.fc.weight.any(), "it learns"
    source = RunSource.open(tmp_path / "run")
    assert source.processor.spec.action.committed == 3
    assert set(source.inputs["committed_count"]) <= {0, 1, 2, 3}
    samples = source.samples()
    assert {int(sample["committed_mask"].sum()) for sample in samples} == set(
        source.inputs["committed_count"]
    )
    # A run that starts from this one goes on being told, without saying so again.
    told = find_base(dataclasses.replace(find_recipe("debug_cpu"), base=str(tmp_path / "run")))
    assert told.model.head.committed == 3


def test_a_dry_run_reckons_the_networks_own_parameters(short: Path) -> None:
    told = preview("debug_cpu", base=str(short))
    assert told["parameters"] == sum(value.numel() for value in read_weights(short).values())


@pytest.mark.parametrize("setting", ["model.head.horizon=4", "model.attention_backend=sdpa"])
def test_a_setting_that_its_shape_overrules_is_refused(short: Path, setting: str) -> None:
    config = override(find_recipe("debug_cpu"), [f"base={short}", setting])
    with pytest.raises(ConfigurationError, match=r"none but model\.head\.committed"):
        find_base(config)


def test_a_folder_that_is_nothing_is_refused(tmp_path: Path, tabletop_data: Path) -> None:
    with pytest.raises(ConfigurationError, match="not found"):
        train("debug_cpu", [tabletop_data], tmp_path / "out", base=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("typed", ["absent", "./absent", "a/b/c", "~/absent"])
def test_a_mistyped_folder_is_named_before_any_hub_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **_: pytest.fail("hub"))
    config = override(find_recipe("debug_cpu"), [f"base={typed}"])
    with pytest.raises(ConfigurationError, match=f"not found: got no folder {typed}"):
        find_base(config)


def test_a_repository_is_asked_for_beside_a_folder_that_is_called_like_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvla").mkdir()
    monkeypatch.chdir(tmp_path)
    fetched = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **_: str(fetched))
    assert find_folder("openvla/openvla-7b") == fetched

    def refuse(*args: object, **options: object) -> str:
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ConfigurationError, match="no connection; openvla/ has no openvla-7b eith"):
        find_folder("openvla/openvla-7b")


def test_a_workspace_that_was_moved_goes_on(
    short: Path, second: Path, tabletop_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = shutil.copytree(short, tmp_path / "moved/start")
    out = shutil.copytree(second, tmp_path / "moved/out")
    stored = json.loads((out / "config.json").read_text())
    options = {"base": str(start), "settings": SECOND, "progress": False}
    monkeypatch.chdir(tmp_path)
    for recorded in (str(tmp_path / "old/start"), "runs/start"):
        (out / "config.json").write_text(json.dumps({**stored, "base": recorded}))
        train("debug_cpu", [tabletop_data], out, **options)
        assert json.loads((out / "config.json").read_text())["base"] == str(start)
    (out / "config.json").write_text(json.dumps({**stored, "base": str(tmp_path / "old/start")}))
    Run.open(out).load_before()
    consolidate(out)
    for recorded in (str(tmp_path / "old/other"), str(short)):  # another name, or still there
        (out / "config.json").write_text(json.dumps({**stored, "base": recorded}))
        with pytest.raises(TrainingError, match="holds another run: got base="):
            train("debug_cpu", [tabletop_data], out, **options)


@pytest.mark.parametrize(
    ("recorded", "asked", "same"),
    [
        ("/old/tuned/openvla", "tuned/openvla", True),
        ("runs/tuned", "tuned/openvla", True),
        ("/old/other/openvla", "tuned/openvla", False),
        ("/old/openvla", "clones/openvla", True),
        ("openvla/openvla-7b", "openvla-7b", False),  # no folder either: two repositories
    ],
)
def test_a_moved_base_is_known_by_its_name(
    tmp_path: Path, recorded: str, asked: str, same: bool
) -> None:
    for folder in ("tuned/openvla", "clones/openvla"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "tuned/config.json").write_text("{}")
    assert is_moved(recorded, str(tmp_path / asked)) == same


def test_a_base_is_found_again_from_another_folder(
    short: Path, second: Path, tabletop_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(short.parent)
    config = find_base(override(find_recipe("debug_cpu"), [f"base={short.name}"]))
    assert config.base == str(short.resolve())
    # A run that an older version began, with its base as it was typed, goes on from there.
    out = shutil.copytree(second, tmp_path / "out")
    stored = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**stored, "base": short.name}))
    options = {"base": short.name, "settings": SECOND, "progress": False}
    train("debug_cpu", [tabletop_data], out, **options)
    monkeypatch.chdir("/")
    assert json.loads((out / "config.json").read_text())["base"] == str(short.resolve())
    Run.open(out).load_before()


def test_a_bundle_tells_no_path_of_the_machine_that_trained(short: Path, second: Path) -> None:
    base = RunSource.open(second).describe()["config"]["base"]
    assert base == short.name


def test_an_unfinished_run_is_no_base(short: Path, tmp_path: Path) -> None:
    base = shutil.copytree(short, tmp_path / "base")
    (base / "model.json").unlink()
    with pytest.raises(ConfigurationError, match=r"no weights yet.*vla-align consolidate"):
        find_base(override(find_recipe("debug_cpu"), [f"base={base}"]))


def test_data_with_another_state_are_refused(
    short: Path, tabletop_data: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(tabletop_data, tmp_path / "data")
    info = json.loads((data / "meta/info.json").read_text())
    joints = [f"joint_{number}" for number in range(7)]
    info["features"]["observation.state"]["names"] = joints
    (data / "meta/info.json").write_text(json.dumps(info))
    told = "not the one of the run to start from: got joint_0, .*; expected "
    with pytest.raises(ConfigurationError, match=told):
        train("debug_cpu", [data], tmp_path / "out", base=str(short), settings=SECOND)
    assert not (tmp_path / "out/config.json").exists()


def test_a_sweep_on_top_of_a_run_knows_its_finished_cells(short: Path, second: Path) -> None:
    settings = (*SECOND, f"base={short}")
    plan = SweepPlan("debug_cpu", ("data",), (Row("one"),), (7,), settings)
    (cell,) = make_cells(plan, Path("out"))
    assert cell.config == RunConfig.from_dict(read_json(second / "config.json"))
    assert dataclasses.replace(cell, folder=second).look().status == "done"


def test_its_pixels_are_those_of_the_run_whatever_a_hub_says(
    short: Path, tabletop_data: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(short, tmp_path / "base")
    shutil.rmtree(base / "checkpoints")
    path = base / "processor/processor.json"
    values = json.loads(path.read_text())
    other = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}
    values["image_transform"] |= other
    path.write_text(json.dumps(values))
    config = override(find_recipe("debug_cpu"), [f"base={base}", "data.augment.enabled=true"])
    sources = open_sources([tabletop_data], config.data)
    built = build_processor(find_base(config), sources, tmp_path).image_transform
    kept = Processor.load(path.parent).image_transform
    assert kept.mean == (0.1, 0.2, 0.3) and kept.interpolation == "bilinear" and kept.crop == 1.0
    assert built == dataclasses.replace(kept, crop=config.data.crop) != kept
