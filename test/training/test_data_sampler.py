"""The order of samples: seeded, resumable at any sample, the same for any number of ranks."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from training.data.sampler import SampleSampler
from vla_align_ros.errors import DataError


def take(sampler: SampleSampler, batches: int) -> list[int]:
    return [int(i) for _ in range(batches) for i in sampler.next_indices()]


@given(
    samples=st.integers(1, 60),
    batch_size=st.integers(1, 7),
    seed=st.integers(0, 99),
    stop=st.integers(0, 30),
)
def test_a_resumed_sampler_continues_as_if_never_stopped(
    samples: int, batch_size: int, seed: int, stop: int
) -> None:
    indices = np.arange(100, 100 + samples)
    if samples < batch_size:
        with pytest.raises(DataError, match="fills no batch"):
            SampleSampler(indices, batch_size, seed=seed)
        return
    whole = SampleSampler(indices, batch_size, seed=seed)
    expected = [whole.next_indices().tolist() for _ in range(stop + 15)]
    first = SampleSampler(indices, batch_size, seed=seed)
    for _ in range(stop):
        first.next_indices()
    second = SampleSampler(indices, batch_size, seed=seed)
    second.load_state_dict(first.state_dict())
    assert [second.next_indices().tolist() for _ in range(15)] == expected[stop:]


@given(
    samples=st.integers(8, 50),
    before=st.sampled_from([1, 2, 4]),
    after=st.sampled_from([1, 2, 4]),
    steps=st.integers(0, 12),
    seed=st.integers(0, 9),
)
def test_other_ranks_continue_without_repeating_or_skipping_a_sample(
    samples: int, before: int, after: int, steps: int, seed: int
) -> None:
    """A global batch of 8 on 1, 2 or 4 ranks, then on another number of them."""

    def run(world: int, state: dict[str, int] | None, count: int) -> tuple[list[int], dict]:
        ranks = [
            SampleSampler(np.arange(samples), 8 // world, seed=seed, rank=r, world_size=world)
            for r in range(world)
        ]
        for rank in ranks:
            if state is not None:
                rank.load_state_dict(state)
        seen = [int(i) for _ in range(count) for rank in ranks for i in rank.next_indices()]
        states = [rank.state_dict() for rank in ranks]
        assert all(one == states[0] for one in states)
        return seen, states[0]

    seen, state = run(before, None, steps)
    more, _ = run(after, state, 10)
    uninterrupted, _ = run(1, None, steps + 10)
    assert seen + more == uninterrupted
    epochs = len(uninterrupted) // samples
    for epoch in range(epochs):
        part = uninterrupted[epoch * samples : (epoch + 1) * samples]
        assert sorted(part) == list(range(samples))


def test_another_batch_size_continues_the_same_stream() -> None:
    first = SampleSampler(np.arange(20), 4, seed=1)
    seen = take(first, 3)
    second = SampleSampler(np.arange(20), 7, seed=1)
    second.load_state_dict(first.state_dict())
    seen += take(second, 4)
    assert seen == take(SampleSampler(np.arange(20), 1, seed=1), 40)


def test_seeds_and_epochs_differ_in_order() -> None:
    orders = [take(SampleSampler(np.arange(50), 50, seed=s), 2) for s in (0, 1)]
    epochs = [order[k : k + 50] for order in orders for k in (0, 50)]
    assert len({tuple(epoch) for epoch in epochs}) == 4


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    weights=st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0]), min_size=4, max_size=4),
    seed=st.integers(0, 9),
)
def test_weights_say_how_often_a_sample_comes_an_epoch(
    sizes: list[int], weights: list[float], seed: int
) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    assume(len(groups) >= 2)
    sampler = SampleSampler(
        np.arange(len(groups)), 1, seed=seed, groups=groups, weights=weights[: len(sizes)]
    )
    epoch = sampler.samples_per_epoch
    draws = [sampler.next_draws() for _ in range(4 * epoch)]
    by_group = collections.Counter(int(groups[d.indices[0]]) for d in draws)
    for group, size in enumerate(sizes):
        share = size if len(set(weights[: len(sizes)])) == 1 and weights[0] == 1.0 else None
        expected = 4 * (share or max(1, round(size * weights[group])))
        assert by_group[group] == expected
        mine = [d for d in draws if groups[d.indices[0]] == group]
        counts = collections.Counter(int(d.indices[0]) for d in mine)
        assert max(counts.values()) - min(counts.values(), default=0) <= 1 or len(counts) < size
        pairs = [(int(d.indices[0]), int(d.passes[0])) for d in mine]
        assert len(set(pairs)) == len(pairs)  # never the same augmentation twice
        assert {number for _, number in pairs} == set(range(-(-len(mine) // size)))


def test_weights_of_one_are_the_plain_union() -> None:
    plain = SampleSampler(np.arange(30), 3, seed=4)
    groups = np.repeat([0, 1], [20, 10])
    weighted = SampleSampler(np.arange(30), 3, seed=4, groups=groups, weights=[1.0, 1.0])
    assert take(plain, 20) == take(weighted, 20)


@pytest.mark.parametrize("weights", [[0.0, 1.0], [-1.0, 1.0], [float("nan"), 1.0]])
def test_a_senseless_weight_is_refused(weights: list[float]) -> None:
    with pytest.raises(DataError, match=r"weight makes no sense.*data/a:2"):
        SampleSampler(np.arange(9), 1, seed=0, groups=np.arange(9) % 2, weights=weights)


def test_ranks_share_a_batch_and_count_samples_together() -> None:
    ranks = [SampleSampler(np.arange(24), 3, seed=4, rank=r, world_size=2) for r in range(2)]
    draws = [rank.next_draws() for rank in ranks]
    assert [d.start for d in draws] == [0, 0]
    assert [rank.next_draws().start for rank in ranks] == [6, 6]
    single = SampleSampler(np.arange(24), 6, seed=4)
    np.testing.assert_array_equal(single.next_indices(), np.concatenate([d.indices for d in draws]))
    assert (ranks[0].samples_drawn, ranks[0].epoch, ranks[0].global_batch) == (12, 0, 6)


def test_a_position_of_another_run_is_refused() -> None:
    state = SampleSampler(np.arange(24), 3, seed=4).state_dict()
    with pytest.raises(DataError, match="seed=5"):
        SampleSampler(np.arange(24), 3, seed=5).load_state_dict(state)
    with pytest.raises(DataError, match="samples=23"):
        SampleSampler(np.arange(23), 3, seed=4).load_state_dict(state)
    with pytest.raises(DataError, match="rank 2 of 2"):
        SampleSampler(np.arange(23), 3, seed=4, rank=2, world_size=2)
