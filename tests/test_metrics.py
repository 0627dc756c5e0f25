import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from o3d_jax.metrics import lpips, psnr, ssim
from o3d_jax.nn.lpips import Lpips
from support.quick import jit
from support.synthetic import synthetic_variables


def pairs(shape, noise, seed=0):
    """Smooth images and noisy copies, so that all three terms of SSIM vary."""
    rng = np.random.default_rng(seed)
    height, width = shape[-3:-1]
    y, x = np.linspace(0, 5, height)[:, None, None], np.linspace(0, 4, width)[None, :, None]
    phase = rng.uniform(0, 6, (*shape[:-3], 1, 1, shape[-1]))
    lift = (1,) * (phase.ndim - 3)
    a = 0.5 + 0.4 * np.sin((x + y).reshape(*lift, height, width, 1) + phase)
    b = (0.8 * a + 0.05 + noise * rng.standard_normal(a.shape)).clip(0, 1)
    return a.astype(np.float32), b.astype(np.float32)


def test_psnr_by_hand():
    """An error of 0.1 everywhere is 20 dB, of 1 is 0 dB, of nothing is infinite."""
    a = jnp.zeros((3, 4, 5, 3))
    b = a + jnp.array([0.1, 1.0, 0.0])[:, None, None, None]
    np.testing.assert_allclose(psnr(a, b), [20.0, 0.0, np.inf], atol=1e-5)


def test_psnr_agrees_with_skimage():
    a, b = pairs((2, 3, 14, 19, 3), 0.1)
    expected = [
        [peak_signal_noise_ratio(a[i, j], b[i, j], data_range=1) for j in range(3)]
        for i in range(2)
    ]
    np.testing.assert_allclose(psnr(jnp.asarray(a), jnp.asarray(b)), expected, rtol=1e-5)  # fp32


@pytest.mark.parametrize("shape", [(11, 11, 3), (2, 25, 18, 3), (2, 3, 17, 30, 3)])
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
def test_ssim_agrees_with_skimage(shape, noise):
    a, b = pairs(shape, noise)
    expected = [
        structural_similarity(
            p.astype(np.float64),
            q.astype(np.float64),
            gaussian_weights=True,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=-1,
        )
        for p, q in zip(a.reshape(-1, *shape[-3:]), b.reshape(-1, *shape[-3:]), strict=True)
    ]
    # Variances are differences of numbers near 1 in float32 (6e-8) against c2 = 9e-4.
    np.testing.assert_allclose(np.ravel(ssim(jnp.asarray(a), jnp.asarray(b))), expected, atol=2e-4)


def test_ssim_of_equal_images_is_1_and_is_symmetric():
    a, b = map(jnp.asarray, pairs((2, 16, 13, 3), 0.1))
    np.testing.assert_allclose(ssim(a, a), 1, atol=1e-5)
    np.testing.assert_allclose(ssim(a, b), ssim(b, a), atol=1e-6)


def test_ssim_of_flat_images_is_the_luminance_term():
    """No variance: Wang et al.'s Eq. 13 leaves (2 x y + C1) / (x^2 + y^2 + C1), C1 = 1e-4."""
    a, b = jnp.full((12, 15, 3), 0.5), jnp.full((12, 15, 3), 0.25)
    # 1e-7 of rounding in a variance, against C2 = 9e-4.
    np.testing.assert_allclose(ssim(a, b), (0.25 + 1e-4) / (0.3125 + 1e-4), rtol=5e-4)


def test_ssim_of_an_image_smaller_than_the_window_is_refused():
    with pytest.raises(ValueError, match="SSIM needs 11"):
        ssim(jnp.zeros((30, 10, 3)), jnp.zeros((30, 10, 3)))


@pytest.mark.parametrize("sigma", [0.8, 2.1])
def test_ssim_of_another_window_agrees_with_skimage(sigma):
    """scikit-image cuts the window where 3.5 deviations end: at 7 and 15 pixels."""
    a, b = pairs((18, 23, 3), 0.1)
    expected = structural_similarity(
        a.astype(np.float64),
        b.astype(np.float64),
        gaussian_weights=True,
        sigma=sigma,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=-1,
    )
    window = 2 * int(3.5 * sigma + 0.5) + 1
    found = ssim(jnp.asarray(a), jnp.asarray(b), window, sigma)
    np.testing.assert_allclose(found, expected, atol=2e-4)  # As above.
    assert abs(float(ssim(jnp.asarray(a), jnp.asarray(b))) - expected) > 1e-3


def test_ssim_with_a_reflected_border_is_that_inside_a_mirrored_image():
    a, b = pairs((2, 12, 15, 3), 0.1)
    mirrored = [np.pad(x, ((0, 0), (5, 5), (5, 5), (0, 0)), "reflect") for x in (a, b)]
    found = ssim(jnp.asarray(a), jnp.asarray(b), border="reflected")
    np.testing.assert_allclose(found, ssim(*map(jnp.asarray, mirrored)), rtol=1e-6)
    assert found.shape == (2,)


def test_lpips_resizes_to_the_size_it_is_told():
    """Images of a constant color each look alike at all sizes; a checkerboard vanishes at half."""
    params = synthetic_variables(Lpips(), *jnp.zeros((2, 1, 16, 16, 3)))["params"]
    board = jnp.indices((32, 32)).sum(axis=0) % 2
    board = jnp.broadcast_to(board[None, ..., None], (1, 32, 32, 3)).astype(jnp.float32)
    gray = jnp.full((1, 32, 32, 3), 0.5)
    compiled = jit(lpips, static_argnums=(3, 4))
    whole = compiled(params, board, gray, "vgg", None)
    halved = compiled(params, board, gray, "vgg", 16)
    assert abs(float(whole[0])) > 1e-2
    # Windows of an antialiased half weigh both colors alike, but for float32 and the border.
    assert abs(float(halved[0])) < 0.05 * abs(float(whole[0]))
