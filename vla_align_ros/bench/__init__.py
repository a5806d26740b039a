"""Measurements of the runtime on real processes: injected faults, real time, endurance."""
