"""Means, gaps and intervals, against formulas that do not resample."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from o3d_jax.evaluation.protocol import IntervalsProtocol, MetricsProtocol, Protocol, ViewsProtocol
from o3d_jax.evaluation.scores import (
    OrbitScore,
    PerMetric,
    delta_interval,
    mean_interval,
    measure,
    resamples,
    summarize,
)

PROTOCOL = Protocol(name="mine", version=1)
DRAWS = IntervalsProtocol(draws=20_000)


def per_view(*psnr, lpips=None):
    values = np.array(psnr, np.float32)
    return PerMetric(values, values / 100, None if lpips is None else np.array(lpips, np.float32))


def score(name, orbit, views, renders, copied=(90, 1, 1)):
    return OrbitScore(name, orbit, per_view(*views), per_view(*renders), per_view(*copied))


SCORES = [
    score("a", "a/0", (50, 10, 12), (40, 13, 15)),
    score("a", "a/1", (50, 14, 16), (40, 15, 17)),
    score("b", "b/0", (70, 20, 30), (60, 21, 23)),
]


def test_an_object_counts_once_however_many_orbits_it_has():
    """By hand: a is (11 + 15) / 2 = 13, b is 25; renders (14 + 16) / 2 = 15 and 22."""
    summary = summarize(PROTOCOL, SCORES)
    assert summary.views.psnr.value == pytest.approx(19)
    assert summary.renders.psnr.value == pytest.approx(18.5)
    assert summary.delta.psnr.value == pytest.approx(0.5)  # Not the mean of |2| and |-3|.
    assert summary.delta.ssim.value == pytest.approx(0.005)
    assert summary.copied.psnr.value == pytest.approx(1)
    assert summary.input_views.psnr.value == pytest.approx(60)
    assert summary.input_renders.psnr.value == pytest.approx(50)


def test_the_input_view_counts_where_the_protocol_says_so():
    """By hand: a is (24 + 80 / 3) / 2 = 76 / 3, b is 40."""
    views = ViewsProtocol(input_view="included")
    summary = summarize(dataclasses.replace(PROTOCOL, views=views), SCORES)
    assert summary.views.psnr.value == pytest.approx((76 / 3 + 40) / 2)
    assert summary.input_views.psnr.value == pytest.approx(60)


def test_lpips_is_summarized_where_it_was_measured_and_absent_elsewhere():
    assert summarize(PROTOCOL, SCORES).views.lpips is None
    with_lpips = [
        s._replace(**{f: per_view(1, 2, 3, lpips=(9, x, x + 1)) for f in ("views", "renders")})
        for s, x in zip(SCORES, (0.0, 0.0, 4.0), strict=True)
    ]
    assert summarize(PROTOCOL, with_lpips).views.lpips.value == pytest.approx((0.5 + 4.5) / 2)


def test_a_single_object_has_no_interval():
    summary = summarize(PROTOCOL, SCORES[:2])
    assert summary.views.psnr == (13, None, None)
    assert summary.delta.psnr == (2, None, None)


def test_intervals_are_those_of_normal_theory_for_many_objects():
    """Of 400 values, quantiles of 20,000 means: 1.5 % of the width by Monte Carlo, 1 % by skew."""
    values = np.random.default_rng(3).normal(20, 4, 400)
    found = mean_interval(values, resamples(DRAWS, 400), 0.9)
    half = stats.norm.ppf(0.95) * values.std() / np.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.04 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.04 * half)


def test_views_and_renders_are_resampled_together():
    """A gap that is the same for all objects is certain, however much these differ."""
    a = np.random.default_rng(0).normal(20, 5, 30)
    found = delta_interval(a, a + 0.5, resamples(DRAWS, 30), 0.95)
    np.testing.assert_allclose(found, 0.5, rtol=1e-12)


def test_a_gap_that_may_be_none_has_an_interval_from_0():
    rng = np.random.default_rng(0)
    gaps = rng.normal(0, 1, 30)
    gaps += 0.01 - gaps.mean()
    found = delta_interval(gaps, np.zeros(30), resamples(DRAWS, 30), 0.95)
    assert found.low == 0 and found.value == pytest.approx(0.01)
    # The standard error of the mean of 30, twice.
    assert found.high == pytest.approx(0.01 + 1.96 * gaps.std() / 30**0.5, rel=0.1)
    below = delta_interval(np.zeros(30), gaps + 3, resamples(DRAWS, 30), 0.95)
    assert 0 < below.low < below.value < below.high


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    values = np.arange(7.0)
    intervals = [
        mean_interval(values, resamples(IntervalsProtocol(draws=500, seed=s), 7), 0.95)
        for s in (0, 0, 1)
    ]
    assert intervals[0] == intervals[1] != intervals[2]


def test_measures_are_those_of_images_as_a_viewer_sees_them():
    """Clipped to [0, 1]; by hand, 0.1 off is 20 dB; equal images get the protocol's most."""
    truth = np.full((3, 12, 13, 3), 0.9, np.float32)
    images = truth + np.array([0.1, 0.5, 0.0], np.float32)[:, None, None, None]
    found = measure(MetricsProtocol(psnr_most=70.0), None, images, truth)
    np.testing.assert_allclose(found.psnr, [20, 20, 70], atol=1e-4)
    # Rounding of variances, 6e-8, against C2 = 9e-4.
    assert found.ssim[2] == pytest.approx(1, abs=2e-4) and found.lpips is None
