"""Demonstrations: LeRobot v3.0 writer and reader, the expert's collection, training batches."""
