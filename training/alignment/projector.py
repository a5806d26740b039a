"""Maps student tokens to the teacher's width: the paper's frozen MLP and what it compares with.

The paper names its variants and publishes the code of the MLP alone; the others are defined here.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from training.alignment.registry import find_variant
from training.alignment.whitening import RunningWhitening

ITERATIONS = 8  # of the power method a pass: with torch's 1 a fast growing direction is overlooked


class Projector(nn.Module):
    """Maps (B, k, student width) to (B, k, teacher width), from a seeded random start.

    Frozen (the paper's choice) it only compares, so that the student itself has to move; its
    parameters take no gradient and dropout never acts, whatever mode the parent is in. Being
    random, it belongs into every checkpoint: a run resumed with another one would chase another
    target. Initialised from a generator of its own; the global random state is untouched.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = True  # compute in float32, also under autocast
    keeps_statistics: ClassVar[bool] = False  # learns from the tokens in train mode, frozen or not

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        *,
        hidden: int = 2048,
        seed: int = 0,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        self.trainable = trainable
        self.build(student_width, teacher_width, hidden, Generator().manual_seed(seed))
        self.requires_grad_(trainable)
        self.train()

    def build(self, student: int, teacher: int, hidden: int, generator: Generator) -> None:
        """Make the parts; every random number comes from `generator`."""
        raise NotImplementedError

    def project(self, tokens: Tensor) -> Tensor:
        """Map float32 (B, k, student width) to (B, k, teacher width)."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Projector:
        """Stay in eval mode while frozen, whatever the parent does."""
        return super().train(mode and (self.trainable or self.keeps_statistics))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, k, student width) to (B, k, teacher width); gradients pass to the tokens."""
        if not self.exact:
            return self.project(tokens.float())
        with torch.autocast(tokens.device.type, enabled=False):
            return self.project(tokens.float())


class MlpProjector(Projector):
    """LayerNorm, then Linear-SiLU-Dropout twice, then Linear: the paper's, frozen by default."""

    name = "mlp"
    exact = False

    def build(self, student: int, teacher: int, hidden: int, generator: Generator) -> None:
        """Draw the three linear layers."""
        self.layers = _mlp(student, teacher, hidden, generator)

    def project(self, tokens: Tensor) -> Tensor:
        """Apply the layers."""
        projected: Tensor = self.layers(tokens)
        return projected


class SpectralProjector(MlpProjector):
    """The paper's MLP with every weight matrix divided by its largest singular value.

    So no layer stretches any direction. Frozen: divided once, exactly. Trainable: at every pass, by
    torch's power iteration, which follows the largest value to a few percent while the weights move
    fast; its vectors are in the state dict.
    """

    name = "spectral"
    exact = True

    def build(self, student: int, teacher: int, hidden: int, generator: Generator) -> None:
        """Draw the layers and divide their weights."""
        super().build(student, teacher, hidden, generator)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator.initial_seed())  # for torch's vectors
            for layer in self.layers:
                if isinstance(layer, nn.Linear):
                    with torch.no_grad():
                        layer.weight /= _stretch(layer.weight)
                    if self.trainable:
                        parametrizations.spectral_norm(layer, n_power_iterations=ITERATIONS)


class OrthogonalProjector(Projector):
    """LayerNorm, then one matrix P (student width x teacher width) with P^T P = I, no bias.

    For a teacher wider than the student P P^T = I instead. Trainable: P is the orthogonal factor of
    a free matrix (QR with a positive diagonal), so that it stays orthogonal whatever the optimizer
    and its weight decay do.
    """

    name = "orthogonal"

    def build(self, student: int, teacher: int, hidden: int, generator: Generator) -> None:
        """Draw P uniformly among the orthogonal ones."""
        self.norm = nn.LayerNorm(student)
        self.weight = nn.Parameter(torch.empty(teacher, student, device="cpu"))
        nn.init.orthogonal_(self.weight, generator=generator)

    def matrix(self) -> Tensor:
        """P^T, (teacher width, student width)."""
        if not self.trainable:
            return self.weight
        is_wide = self.weight.shape[0] < self.weight.shape[1]
        q, r = torch.linalg.qr(self.weight.mT if is_wide else self.weight)
        q = q * r.diagonal().sign()
        turned: Tensor = q.mT if is_wide else q
        return turned

    def project(self, tokens: Tensor) -> Tensor:
        """Normalise and turn."""
        return functional.linear(self.norm(tokens), self.matrix())


class CosineProjector(Projector):
    """Channel i is the cosine of the normalised token and a vector w_i, times one gain.

    A linear layer with cosine normalisation: neither the length of a token nor that of a w_i
    counts. The gain starts at sqrt(student width), for outputs near unit variance; it matters to
    the L2 loss alone.
    """

    name = "cosine"

    def build(self, student: int, teacher: int, hidden: int, generator: Generator) -> None:
        """Draw the vectors."""
        self.norm = nn.LayerNorm(student)
        self.weight = nn.Parameter(torch.empty(teacher, student, device="cpu"))
        nn.init.normal_(self.weight, generator=generator)
        self.gain = nn.Parameter(torch.tensor([math.sqrt(student)], device="cpu"))

    def project(self, tokens: Tensor) -> Tensor:
        """Cosines of every token with every vector, times the gain."""
        directions = functional.normalize(self.weight, dim=-1)
        unit = functional.normalize(self.norm(tokens), dim=-1)
        return self.gain * functional.linear(unit, directions)


class WhiteningProjector(Projector):
    """LayerNorm, Linear to the teacher's width, then whitening by running statistics.

    Whitened channels are uncorrelated, of mean 0 and variance 1 over the tokens of recent batches
    (see RunningWhitening), so that no direction dominates the comparison.
    """

    name = "whitening"
    keeps_statistics = True

    def build(self, student: int, teacher: int, hidden: int, generator: Generator) -> None:
        """Draw the linear map."""
        self.norm = nn.LayerNorm(student)
        self.linear = _linear(student, teacher, generator)
        self.whiten = RunningWhitening(teacher)

    def project(self, tokens: Tensor) -> Tensor:
        """Map and whiten."""
        whitened: Tensor = self.whiten(self.linear(self.norm(tokens)))
        return whitened


class FilmProjector(Projector):
    """One hidden layer whose channels the whole picture scales and shifts (FiLM).

    h = Linear(LayerNorm(x)); gamma and beta are linear in the mean of the sample's normalised
    tokens; out = Linear(SiLU((1 + gamma) h + beta)).
    """

    name = "film"
    exact = False

    def build(self, student: int, teacher: int, hidden: int, generator: Generator) -> None:
        """Draw the layer, its modulation and the output layer."""
        self.norm = nn.LayerNorm(student)
        self.hidden = _linear(student, hidden, generator)
        self.modulation = _linear(student, 2 * hidden, generator)
        self.out = _linear(hidden, teacher, generator)

    def project(self, tokens: Tensor) -> Tensor:
        """Modulate the hidden layer by the mean token and project."""
        normed = self.norm(tokens)
        gamma, beta = self.modulation(normed.mean(dim=1, keepdim=True)).chunk(2, dim=-1)
        projected: Tensor = self.out(functional.silu((1.0 + gamma) * self.hidden(normed) + beta))
        return projected


PROJECTORS: dict[str, type[Projector]] = {
    projector.name: projector
    for projector in (
        *(MlpProjector, CosineProjector, OrthogonalProjector),
        *(SpectralProjector, WhiteningProjector, FilmProjector),
    )
}


def build_projector(
    name: str,
    student_width: int,
    teacher_width: int,
    *,
    hidden: int,
    seed: int,
    trainable: bool,
) -> Projector:
    """Build the projector called `name`; an unknown name lists the valid ones."""
    kind = find_variant(PROJECTORS, name, "alignment.projector")
    return kind(student_width, teacher_width, hidden=hidden, seed=seed, trainable=trainable)


def _mlp(student: int, teacher: int, hidden: int, generator: Generator) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(student),
        _linear(student, hidden, generator),
        nn.SiLU(),
        nn.Dropout(0.1),
        _linear(hidden, hidden, generator),
        nn.SiLU(),
        nn.Dropout(0.1),
        _linear(hidden, teacher, generator),
    )


def _linear(inputs: int, outputs: int, generator: Generator) -> nn.Linear:
    """A linear layer with torch's default distribution, drawn from `generator`."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")  # not yet drawn
    bound = 1.0 / math.sqrt(inputs)
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer


def _stretch(weight: Tensor) -> Tensor:
    """Largest singular value, from the smaller Gram matrix: far faster than all of them."""
    is_wide = weight.shape[0] < weight.shape[1]
    gram = weight @ weight.mT if is_wide else weight.mT @ weight
    largest: Tensor = torch.linalg.eigvalsh(gram)[-1].sqrt()
    return largest
