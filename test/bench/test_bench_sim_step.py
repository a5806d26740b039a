"""A step of the simulator is cheap enough for thousands; timed with nothing beside it."""

from __future__ import annotations

import importlib.util
import time

import numpy as np
import pytest

if importlib.util.find_spec("mujoco") is None:  # not imported: the simulator chooses how to draw
    pytest.skip("needs the extra [sim]", allow_module_level=True)

from vla_align_ros.sim.tabletop import TabletopEnv

SLOW_MACHINE = 6.0  # bare pictures a step, where the software driver itself is slow


def test_a_step_with_its_picture_takes_at_most_20_ms_of_one_core() -> None:
    full = TabletopEnv(render_size=224)
    full.reset(0)
    action = np.array([0.005, 0.002, -0.002, 0.0, 0.0, 0.02, 1.0])
    costs_ms = []
    for _ in range(5):
        started = time.process_time()
        for _ in range(8):
            full.step(action)
        costs_ms.append((time.process_time() - started) / 8 * 1e3)
    full.close()
    bound_ms = max(20.0, SLOW_MACHINE * draw_bare_ms())
    assert min(costs_ms) <= bound_ms, f"CPU ms a step: {costs_ms}, allowed {bound_ms}"


def draw_bare_ms() -> float:
    """CPU milliseconds of one picture of a box on a plane, at the same size, by MuJoCo alone."""
    import mujoco

    model = mujoco.MjModel.from_xml_string(
        """<mujoco><visual><quality shadowsize="1024" offsamples="0"/></visual><worldbody>
        <light pos="0 0 2"/><geom type="plane" size="1 1 .1"/>
        <geom type="box" size=".1 .1 .1" pos="0 0 .1"/></worldbody></mujoco>"""
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    costs_ms = []
    with mujoco.Renderer(model, 224, 224) as renderer:
        for _ in range(5):
            started = time.process_time()
            for _ in range(8):
                renderer.update_scene(data)
                renderer.render()
            costs_ms.append((time.process_time() - started) / 8 * 1e3)
    return min(costs_ms)
