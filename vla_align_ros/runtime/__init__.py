"""Execution of a policy without ROS: inference, chunks in time, safety, metrics."""
