"""Commands of `vla-align` that a robot without torch can run."""
