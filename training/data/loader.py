"""Prepares batches ahead of the step in threads, without changing what a batch is.

Threads suffice: decoding (FFmpeg), resizing (Pillow) and numpy's loops release Python's lock, and
threads share one cache of decoded frames.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from training.data.sampler import Draws, SampleSampler

Batch = Mapping[str, Any]
Make = Callable[[Draws], Batch]


class BatchLoader:
    """Yields make(draws) for one batch of the sampler after the other, in order.

    Up to `ahead` batches a worker are prepared in advance; with no worker each is made when it is
    asked for. The state is that of the batches *delivered*: what was prefetched and never used is
    drawn again after resuming. An error in a worker is raised by the `next` that would give its
    batch. waited_s: seconds that `next` waited so far; beside the time of the steps it tells
    whether the data keeps up.
    """

    def __init__(
        self, make: Make, sampler: SampleSampler, *, workers: int = 0, ahead: int = 2
    ) -> None:
        self._make, self._sampler = make, sampler
        self._depth = workers * ahead
        self._pool = ThreadPoolExecutor(workers, "loader") if workers else None
        self._waiting: collections.deque[tuple[Future[Batch], dict[str, Any]]] = collections.deque()
        self._delivered = sampler.state_dict()
        self.waited_s = 0.0

    def next(self) -> Batch:
        """The next batch."""
        started_s = time.perf_counter()
        try:
            if self._pool is None:
                batch = self._make(self._sampler.next_draws())
                self._delivered = self._sampler.state_dict()
                return batch
            self._fill()
            future, state = self._waiting.popleft()
            batch = future.result()
            self._delivered = state
            self._fill()
            return batch
        finally:
            self.waited_s += time.perf_counter() - started_s

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.next()

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state after the last delivered batch."""
        return dict(self._delivered)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batch at which `state_dict` was taken."""
        self._drop()
        self._sampler.load_state_dict(state)
        self._delivered = self._sampler.state_dict()

    def close(self) -> None:
        """Stop the workers; batches under way are finished and thrown away."""
        self._drop()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fill(self) -> None:
        assert self._pool is not None
        while len(self._waiting) < self._depth:
            draws = self._sampler.next_draws()
            state = self._sampler.state_dict()
            self._waiting.append((self._pool.submit(self._make, draws), state))

    def _drop(self) -> None:
        """Forget what was prepared ahead, in the sampler too."""
        for future, _ in self._waiting:
            future.cancel()
        self._waiting.clear()
        self._sampler.load_state_dict(self._delivered)
