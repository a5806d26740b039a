"""Simulated robots that stand in for the real one in demonstrations, tests and measurements."""

import os

# MuJoCo picks its OpenGL when it is imported; without this it wants a screen.
os.environ.setdefault("MUJOCO_GL", "egl")
