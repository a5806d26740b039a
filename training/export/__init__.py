"""From a training run to a proven bundle: graph, precision, golden samples, gate."""
