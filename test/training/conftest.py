"""One small data set of the real collector, shared by the tests that train on it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tabletop_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 clips of the scripted expert, 3 of them held out at data.validation=0.2."""
    if importlib.util.find_spec("mujoco") is None:  # not imported: the simulator chooses how
        pytest.skip("needs the extra [sim]")
    from training.data.collect import collect
    from training.data.collect_settings import CollectSettings

    root = tmp_path_factory.mktemp("tabletop")
    collect(CollectSettings(seed=5, record_frames=(2, 4)), root, 12, progress=False)
    return root


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Train on one thread, as debug_cpu does, and leave other tests theirs."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def short(tabletop_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of 12 steps; the vision tower moves from step 6 on."""
    import torch
    from tiny_run import run_short

    out = tmp_path_factory.mktemp("short")
    threads = torch.get_num_threads()
    run_short(tabletop_data, out)
    torch.set_num_threads(threads)
    return out
