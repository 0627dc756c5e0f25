"""The formulas of App. A.1 beyond the hand values of `test_paper.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from o3d_jax.edm import draw_sigma, loss_weight, scalings, sigma_schedule

SIGMAS = np.array([0.002, 0.1, 1.0, 7.0, 700.0])


def test_network_input_has_unit_variance_for_data_of_unit_variance():
    s = scalings(jnp.asarray(SIGMAS))
    np.testing.assert_allclose(s.c_in**2 * (1 + SIGMAS**2), 1, rtol=1e-6)  # float32 rounding.


def test_network_target_has_unit_variance_for_data_of_unit_variance():
    s = scalings(jnp.asarray(SIGMAS))
    # The target of F is (x0 - c_skip x) / c_out, with x = x0 + sigma n.
    variance = ((1 - s.c_skip) ** 2 + (s.c_skip * SIGMAS) ** 2) / s.c_out**2
    # At sigma = 0.002, 1 - c_skip = 4e-6 has an error of 6e-8, against the other term's 4e-6.
    np.testing.assert_allclose(variance, 1, rtol=1e-5)


def test_loss_weight_evens_out_the_scale_of_the_output():
    weighted = loss_weight(jnp.asarray(SIGMAS)) * scalings(jnp.asarray(SIGMAS)).c_out ** 2
    np.testing.assert_allclose(weighted, 1, rtol=1e-6)  # float32 rounding.


@pytest.mark.parametrize("levels", [2, 3, 25])
def test_schedule_is_linear_in_the_seventh_root(levels):
    sigmas = np.asarray(sigma_schedule(levels, 0.01, 80.0), np.float64)
    expected = [
        (80 ** (1 / 7) + i / (levels - 1) * (0.01 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        for i in range(levels)
    ]
    # A seventh power multiplies the rounding of a float32 (6e-8) by seven, of a few operations.
    np.testing.assert_allclose(sigmas[:-1], expected, rtol=3e-6)
    assert sigmas[-1] == 0


def test_schedule_by_hand_in_the_middle():
    # With rho = 1 the middle of three levels is the mean of the others.
    np.testing.assert_allclose(sigma_schedule(3, 1.0, 9.0, rho=1.0), [9, 5, 1, 0])


def test_one_level_is_the_highest():
    np.testing.assert_allclose(sigma_schedule(1), [700, 0], rtol=1e-6)  # float32 rounding.


def test_log_of_drawn_sigma_is_normal():
    logs = np.log(draw_sigma(jax.random.key(0), (400, 500), 1.0, 1.6)).ravel()
    assert logs.shape == (200_000,)
    # Four standard deviations of the estimates: 1.4 % of the mean, 0.6 % of the deviation.
    assert abs(logs.mean() - 1.0) < 4 * 1.6 / np.sqrt(200_000)
    assert abs(logs.std() / 1.6 - 1) < 4 / np.sqrt(400_000)
    # Kolmogorov-Smirnov, on fixed draws: the shape.
    assert stats.kstest(logs, stats.norm(1.0, 1.6).cdf).pvalue > 0.05
