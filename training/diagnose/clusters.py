"""How well features keep labels apart: silhouette scores, and a map for the eye (t-SNE)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.errors import ConfigurationError
from vla_align_ros.extras import pip_command

PERPLEXITY, ITERATIONS, SEED = 30.0, 1000, 42  # the paper's

Features = NDArray[np.float64]
Labels = NDArray[np.int64]


def silhouette(features: Features, labels: Labels) -> float:
    """Mean silhouette of features (n, d) by cosine distance, -1 to 1; 0 is: not apart at all.

    Rousseeuw 1987. Features are centred first: one direction that all share would hide the rest.
    What does not vary has none: nan.
    """
    try:
        from sklearn.metrics import silhouette_score
    except ImportError as error:
        raise _missing(error) from error
    centred = features - features.mean(0)
    if not np.linalg.norm(centred, axis=1).min() > 1e-9 * max(1.0, float(np.abs(features).max())):
        return float("nan")
    return float(silhouette_score(centred, labels, metric="cosine"))


def map_features(features: Features) -> Features:
    """Lay features (n, d) out in a plane (n, 2) by t-SNE: perplexity 30, 1000 iterations, seed 42.

    The perplexity is smaller where there are fewer than 91 of them. Starts from the two main
    components, so that the layout does not depend on chance.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise _missing(error) from error
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    solver = TSNE(perplexity=perplexity, max_iter=ITERATIONS, random_state=SEED, init="pca")
    plane: Features = solver.fit_transform(np.asarray(features, np.float32)).astype(np.float64)
    return plane


def _missing(error: ImportError) -> ConfigurationError:
    return ConfigurationError(
        "Features cannot be mapped", got=error, expected="scikit-learn", fix=pip_command("diagnose")
    )
