"""What a running run shows: scalars in TensorBoard's files, a bar and lines on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training.config import RunConfig
from training.sight.writers import RunWriter, open_writer


class Progress:
    """Writes and shows on the first rank, and does nothing on the others."""

    def __init__(self, config: RunConfig, out: Path, *, shown: bool, first: bool) -> None:
        self._config, self._out = config, out
        self._shown, self._first = shown and first, first
        self.writer: RunWriter | None = None
        self._bar: Any = None

    @contextmanager
    def open(self, step: int) -> Iterator[None]:
        """Write from `step` on: what a killed run wrote past its checkpoint is written again."""
        if not self._first:
            yield
            return
        config = self._config
        batch = config.optim.batch_size
        self.writer = open_writer(
            self._out,
            purge_step=step + 1 if step else None,
            wandb=config.watch.wandb,
            name=config.recipe,
            config=config.to_dict(),
        )
        self._bar = tqdm(
            total=config.optim.steps * batch,
            initial=step * batch,
            unit="sample",
            desc=config.recipe,
            disable=not self._shown,
            mininterval=2.0,
        )
        try:
            yield
        finally:
            self.writer.close()
            self.writer = None
            self._bar.close()

    def advance(self, step: int) -> None:
        """Move the bar to the end of `step`."""
        if self._bar is not None:
            self._bar.update(self._config.optim.batch_size)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars of `step`; the loss is shown beside the bar."""
        if self.writer is None:
            return
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        if "loss/total" in values:
            self._bar.set_postfix(loss=f"{values['loss/total']:.4f}", refresh=False)

    def tell(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print an evaluation above the bar."""
        if self._shown:
            told = ", ".join(f"{k.split('/')[-1]} {v:.4g}" for k, v in metrics.items())
            self._bar.write(f"step {step}: {told}")
