"""OpenVLA's action vocabulary: 256 uniform bins that borrow the last tokens of the tokenizer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class ActionTokens:
    """Normalised actions in [-1, 1] to token ids and back.

    Edges are linspace(-1, 1, bins) and the values read back are their bins - 1 centres; the id is
    vocab_size - bin, bin counting from 1 (OpenVLA's ActionTokenizer).
    """

    def __init__(self, vocab_size: int, bins: int = 256) -> None:
        self.vocab_size = vocab_size
        self.edges = torch.from_numpy(np.linspace(-1.0, 1.0, bins))  # numpy's, to the last bit
        self.centers = (self.edges[:-1] + self.edges[1:]) / 2

    def encode(self, actions: Tensor) -> Tensor:
        """Return int64 ids, shape of `actions`; values outside [-1, 1] are clipped."""
        clipped = actions.detach().to(torch.float64).clamp(-1.0, 1.0)
        bins = torch.bucketize(clipped, self.edges.to(clipped.device), right=True)
        return self.vocab_size - bins

    def decode(self, tokens: Tensor) -> Tensor:
        """Return float64 bin centres; a foreign id reads as the nearest bin, as in OpenVLA."""
        index = (self.vocab_size - tokens - 1).clamp(0, len(self.centers) - 1)
        return self.centers.to(tokens.device)[index]
