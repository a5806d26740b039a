"""Training on the cluster: model, alignment, data, recipes, export; no robot imports it."""
