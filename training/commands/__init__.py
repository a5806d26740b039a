"""Commands of `vla-align` that need the training extras."""
