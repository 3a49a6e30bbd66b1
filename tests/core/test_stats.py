"""P-values against printed tables and intervals, and Holm's procedure against what is worked out
by hand.
"""

import math

import pytest

from minialign.stats import holm, mean_interval, p_value


@pytest.mark.parametrize("n, t, p", [       # two-sided, from printed tables of Student's t
    (2, 12.706, 0.05), (2, 63.657, 0.01), (3, 4.303, 0.05), (4, 3.182, 0.05), (5, 2.776, 0.05),
    (5, 8.610, 0.001), (6, 4.032, 0.01), (6, 6.869, 0.001), (10, 1.383, 0.2), (10, 2.262, 0.05),
    (10, 3.250, 0.01), (11, 2.228, 0.05), (31, 2.042, 0.05),
])
def test_p_values_are_those_of_the_tables(n, t, p):
    values = [i - (n - 1) / 2 for i in range(n)]
    error = math.sqrt(sum(x * x for x in values) / (n - 1) / n)
    for sign in (1, -1):
        assert p_value([x + sign * t * error for x in values]) == pytest.approx(p, rel=1e-3)


def test_p_values_agree_with_the_intervals_and_have_ends():
    for shift in (0.3, 0.9, 1.5, 3.0):
        values = [x + shift for x in (-1.0, 0.2, 0.4, 1.1, -0.7)]
        mean, half = mean_interval(values)
        assert (p_value(values) < 0.05) == (mean - half > 0)
    assert p_value([0.0, 0.0]) == p_value([-1.0, 1.0]) == 1 and p_value([0.5, 0.5]) == 0
    assert math.isnan(p_value([0.5]))


def test_holm_on_p_values_made_by_hand():
    """Four tests: thresholds .0125, .0167, .025, .05; behind the first failure none counts."""
    assert holm({"a": 0.01, "b": 0.016, "c": 0.03, "d": 0.04}) == {"a", "b"}
    assert holm({"a": 0.013, "b": 0.016, "c": 0.02, "d": 0.04}) == set()
    assert holm({"a": 0.04}) == {"a"} and holm({"a": 0.04, "b": 0.04}) == set()
    assert holm({"a": 0.04, "b": 0.02}) == {"a", "b"}
    assert holm({"a": 0.001, "b": math.nan}) == {"a"} and holm({}) == set()
