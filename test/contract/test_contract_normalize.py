"""Normalisation is undone exactly, constants included, and never guesses missing statistics."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_align_ros.contract.normalize import (
    MODES,
    Normalizer,
    Statistics,
    compute_statistics,
    load_statistics,
    save_statistics,
    select_statistics,
)
from vla_align_ros.errors import NormalizationError

FIELDS = ("q01", "q99", "mean", "std", "min", "max", "mask")
numbers = st.floats(-1e6, 1e6, allow_subnormal=False)
# Column-wise: any numbers, or one constant, so that dimensions without spread are common.
columns = st.lists(numbers, min_size=5, max_size=5) | numbers.map(lambda value: [value] * 5)
tables = st.lists(columns, min_size=1, max_size=4).map(lambda table: np.array(table).T)
masks = hnp.arrays(bool, 4)


@given(tables, st.sampled_from(MODES), masks)
def test_denormalize_undoes_normalize_of_the_data_itself(table, mode, mask):
    statistics = compute_statistics(table, mask[: table.shape[1]])
    normalizer = Normalizer(mode, statistics, clip=False)
    tolerance = 1e-9 * max(1.0, np.abs(table).max())
    back = normalizer.denormalize(normalizer.normalize(table))
    np.testing.assert_allclose(back, table, rtol=0, atol=2 * tolerance)


@given(tables, st.sampled_from(MODES), hnp.arrays(float, (3, 4), elements=st.floats(-1, 1)), masks)
def test_normalize_undoes_denormalize_where_there_is_spread(table, mode, model_values, mask):
    dim = table.shape[1]
    statistics = compute_statistics(table, mask[:dim])
    normalizer = Normalizer(mode, statistics)
    values = model_values[:, :dim]
    back = normalizer.normalize(normalizer.denormalize(values))
    spread = statistics.std if mode == "mean_std" else (statistics.q99 - statistics.q01) / 2
    free = ~statistics.mask | (mode == "identity")
    scale = np.maximum(1.0, np.abs(table).max())
    clear = free | (spread > 1e-3 * scale)
    constant = ~free & (spread == 0.0)
    np.testing.assert_allclose(back[:, clear], values[:, clear], rtol=0, atol=1e-9)
    assert (back[:, constant] == 0.0).all()


@pytest.mark.parametrize("mode", ["quantile", "mean_std"])
def test_a_dimension_without_spread_maps_to_zero_and_back_to_its_constant(mode):
    normalizer = Normalizer(mode, compute_statistics([[0.1, 1.0], [0.1, 3.0], [0.1, 2.0]]))
    normal = normalizer.normalize([[0.1, 2.0], [7.0, 2.0]])
    assert (normal[:, 0] == 0.0).all()
    back = normalizer.denormalize([[0.0, 0.0], [0.9, 0.0]])
    np.testing.assert_allclose(back[:, 0], 0.1, rtol=1e-15)


def test_quantiles_map_to_minus_one_and_one_and_beyond_is_clipped_only_if_asked():
    statistics = compute_statistics(np.linspace(0.0, 100.0, 101)[:, None])
    assert (statistics.q01[0], statistics.q99[0]) == (1.0, 99.0)
    values = [[1.0], [50.0], [99.0], [100.0], [0.0]]
    clipped = Normalizer("quantile", statistics).normalize(values)
    np.testing.assert_allclose(clipped[:, 0], [-1, 0, 1, 1, -1], atol=1e-15)
    free = Normalizer("quantile", statistics, clip=False).normalize(values)
    np.testing.assert_allclose(free[3:, 0], [50 / 49, -50 / 49])


@given(tables, masks)
def test_both_quantiles_are_the_ends_of_the_range_however_skewed_the_data_are(table, mask):
    statistics = compute_statistics(table, mask[: table.shape[1]])
    normalizer = Normalizer("quantile", statistics)
    tolerance = 1e-9 * max(1.0, np.abs(table).max())
    for value, end in ((-1.0, statistics.q01), (1.0, statistics.q99)):
        found = normalizer.denormalize(np.full(statistics.dim, value))
        np.testing.assert_allclose(
            found[statistics.mask], end[statistics.mask], rtol=0, atol=2 * tolerance
        )


@pytest.mark.parametrize("mode", ["quantile", "mean_std"])
def test_a_small_spread_counts_and_one_of_rounding_alone_does_not(mode):
    tenth_of_a_millimetre = compute_statistics([[1e-4], [-1e-4]] * 50)
    np.testing.assert_allclose(
        Normalizer(mode, tenth_of_a_millimetre).normalize([[1e-4], [-1e-4]])[:, 0], [1, -1]
    )
    rounded = compute_statistics([[1e12], [1e12 + 1]] * 50)
    assert (Normalizer(mode, rounded).normalize([[1e12], [1e12 + 1]]) == 0.0).all()


def test_quantiles_at_the_ends_of_what_a_number_holds_do_not_overflow():
    data = compute_statistics([[0.0], [1.0]]).to_dict()
    largest = {**data, "q01": [-1.7e308], "q99": [1.7e308]}
    for q01 in (-1.7e308, 1.6e308):
        normalizer = Normalizer("quantile", Statistics.from_dict({**largest, "q01": [q01]}))
        np.testing.assert_allclose(normalizer.normalize([[q01], [1.7e308]])[:, 0], [-1, 1])


def test_mean_and_deviation_map_to_zero_and_one():
    statistics = compute_statistics([[1.0], [3.0]])
    np.testing.assert_allclose(
        Normalizer("mean_std", statistics).normalize([[2.0], [3.0], [9.0]])[:, 0], [0, 1, 7]
    )


@pytest.mark.parametrize("mode", MODES)
def test_masked_dimensions_pass_unchanged_and_unclipped(mode):
    statistics = compute_statistics([[0.0, 0.0], [1.0, 1.0]], mask=[True, False])
    normalizer = Normalizer(mode, statistics)
    assert normalizer.normalize([0.5, 42.0])[1] == 42.0
    assert normalizer.denormalize([0.5, 42.0])[1] == 42.0


def test_statistics_are_those_of_numpy():
    table = np.random.default_rng(0).normal(size=(1000, 3))
    statistics = compute_statistics(table)
    np.testing.assert_array_equal(statistics.q01, np.quantile(table, 0.01, axis=0))
    np.testing.assert_array_equal(statistics.mean, table.mean(axis=0))
    np.testing.assert_array_equal(statistics.max, table.max(axis=0))


@given(tables)
def test_statistics_come_back_from_a_file_bit_for_bit(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("stats") / "stats.json"
    save_statistics(path, {"action": compute_statistics(table)})
    back = load_statistics(path)["action"]
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(back, name), getattr(compute_statistics(table), name))


@pytest.mark.parametrize("name", FIELDS)
def test_a_missing_statistic_is_an_error(name):
    data = compute_statistics([[0.0], [1.0]]).to_dict()
    del data[name]
    with pytest.raises(NormalizationError, match="wrong keys"):
        Statistics.from_dict(data)


def test_a_missing_key_is_an_error_that_names_the_keys_there_are():
    statistics = {"action": compute_statistics([[0.0], [1.0]])}
    with pytest.raises(NormalizationError, match=r"got \['action'\]; expected the key 'state'"):
        select_statistics(statistics, "state")


@pytest.mark.parametrize(
    "change",
    [
        {"q01": [0.0, 1.0]},
        {"q01": [9.0]},
        {"std": [-1.0]},
        {"min": [9.0]},
        {"mean": [float("nan")]},
        {"mean": ["one"]},
        {"mean": [10**400]},
        {"mean": 0.5},
        {"mask": [1]},
        {"mask": [0.5]},
        {"mean": [[1.0], [1.0, 2.0]]},
        {name: [] for name in FIELDS},
    ],
)
def test_statistics_that_make_no_sense_are_refused(change):
    data = {**compute_statistics([[0.0], [1.0]]).to_dict(), **change}
    with pytest.raises(NormalizationError):
        Statistics.from_dict(data)


@pytest.mark.parametrize("values", [[], [[]], [1.0, 2.0], [[float("inf")]]])
def test_values_without_statistics_are_refused(values):
    with pytest.raises(NormalizationError, match="no statistics"):
        compute_statistics(values)


@pytest.mark.parametrize("values", [1.0, [1.0], [[1.0, 2.0, 3.0]], [float("nan"), 0.0]])
def test_values_that_do_not_fit_are_refused_both_ways(values):
    normalizer = Normalizer("quantile", compute_statistics([[0.0, 0.0], [1.0, 1.0]]))
    for call in (normalizer.normalize, normalizer.denormalize):
        with pytest.raises(NormalizationError, match="expected"):
            call(values)


def test_statistics_do_not_change_under_whoever_uses_them():
    statistics = compute_statistics([[0.0], [1.0]])
    with pytest.raises(ValueError, match="read-only"):
        statistics.mean[0] = 3.0


def test_a_clip_that_is_no_truth_value_is_refused():
    with pytest.raises(NormalizationError, match="true or false"):
        Normalizer.from_dict(
            {"mode": "quantile", "clip": "false"}, compute_statistics([[0.0], [1.0]])
        )


def test_an_unknown_mode_is_refused():
    with pytest.raises(NormalizationError, match="quantile or mean_std or identity"):
        Normalizer("minmax", compute_statistics([[0.0], [1.0]]))


@pytest.mark.parametrize("text", ["", "[]", '{"action": 3}', '{"action": NaN}', '{"a": 1, "a": 2}'])
def test_a_broken_statistics_file_is_one_clear_error(tmp_path, text):
    path = tmp_path / "stats.json"
    path.write_text(text)
    with pytest.raises(NormalizationError):
        load_statistics(path)


def test_statistics_are_json_that_people_can_read(tmp_path):
    path = tmp_path / "stats.json"
    save_statistics(path, {"action": compute_statistics([[0.0], [1.0]])})
    assert json.loads(path.read_text())["action"]["max"] == [1.0]
    assert path.read_text().count("\n") > 10
