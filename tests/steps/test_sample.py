"""Algorithm 2: the loop against one written out by hand, and its pieces."""

from dataclasses import replace

import chex
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.config import Config, SampleConfig
from o3d_jax.geometry.ccm import coordinate_map, surface_depth
from o3d_jax.splat import render
from o3d_jax.steps import sample
from o3d_jax.steps.condition import encode_condition
from o3d_jax.types import Condition, Maps

pytestmark = pytest.mark.usefixtures("quick_compilation")
LEVELS = 3
SIGMAS = [(700 ** (1 / 7) + r * (0.002 ** (1 / 7) - 700 ** (1 / 7))) ** 7 for r in (0, 0.5, 1)]


@pytest.fixture(scope="module")
def setting(toy, batch):
    """Arguments of `generate`; two objects, because a batch is one thing more to confuse."""
    assert toy.config.sample == SampleConfig(levels=LEVELS)
    two = jax.tree.map(lambda a: a[:2], batch)
    return {"model": toy, "image": two.images[:, 0], "cameras": two.cameras}


@pytest.fixture(scope="module")
def start(setting):
    return sample.sample_prepare(setting["model"], setting["image"], jax.random.key(5))


def run_loop(setting, start, sigmas, config=None, step=sample.sample_step):
    """Every level's state before it, and what it found; then the last state."""
    condition, state = start
    model, cameras = setting["model"], setting["cameras"]
    model = replace(model, config=config or model.config)
    states, found = [state], []
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        state, estimate = step(model, condition, cameras, state, sigma, sigma_next)
        states.append(state)
        found.append(estimate)
    return states, found


@pytest.fixture(scope="module")
def loop(setting, start):
    return run_loop(setting, start, sample.noise_levels(setting["model"].config.sample))


def one_level_by_hand(networks, params, frozen, condition, cameras, x, maps, sigma, sigma_next):
    """Algorithm 2 and SVD's guidance, formula by formula."""
    norm = jnp.sqrt(sigma**2 + 1)
    c_noise = jnp.full(x.shape[0], 0.25 * jnp.log(sigma))

    def estimate(given):
        raw = networks.unet.apply(params.unet, x / norm, c_noise, given, cameras, maps)
        return x / norm**2 - sigma / norm * raw

    nothing = Condition(
        clip=jnp.zeros_like(condition.clip),
        latents=jnp.zeros_like(condition.latents),
        added_ids=condition.added_ids,
    )
    scale = jnp.array([1, 5 / 3, 7 / 3, 3])[None, :, None, None, None]  # 1 to 3 over four views.
    x0 = (1 - scale) * estimate(nothing) + scale * estimate(condition)
    views = networks.vae.apply(frozen.vae, x0 / 0.18215, method="decode")
    gaussians = networks.lgm.apply(params.lgm, views, cameras, c_noise)
    drawn = render(gaussians, cameras, views.shape[2:4], jnp.ones(3))
    ccm = coordinate_map(surface_depth(drawn.depth, drawn.alpha), cameras)
    x = x + (x - x0) * (sigma_next / sigma - 1)
    return x, Maps(rgb=jnp.clip(drawn.rgb, 0, 1), ccm=ccm), views, drawn


@pytest.fixture(scope="module")
def by_hand(setting, start):
    """The whole loop, in Python."""
    step = jax.jit(one_level_by_hand, static_argnums=0)
    condition, state = start
    x, maps, levels = state.x, Maps.nothing(2, 4, 16, 16), []
    for sigma, sigma_next in zip(SIGMAS, [*SIGMAS[1:], 0.0], strict=True):
        model = setting["model"]
        given = [model.networks, model.params, model.frozen]
        x, maps, views, drawn = step(
            *given, condition, setting["cameras"], x, maps, sigma, sigma_next
        )
        levels.append((x, maps, views, drawn))
    return levels


def close(found, expected, tolerance):
    """Relative to the largest value: x starts at 700 and the levels pass its rounding on."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=tolerance)


def test_alg2_each_level_is_the_one_written_by_hand(loop, by_hand):
    states, found = loop
    for i, (x, maps, views, drawn) in enumerate(by_hand):
        # Rounding of float32; x0 at 700 is a small difference of large numbers, relative 1e-7 of x.
        close(states[i + 1].x, x, 1e-5)
        close(found[i].views, views, 1e-4)
        close(found[i].reconstruction.rendering.rgb, drawn.rgb, 1e-4)
        # A pixel may change sides of alpha = 1/2, or of 1/255 in the rasterizer.
        away = (np.abs(np.asarray(states[i + 1].maps.ccm - maps.ccm)) > 1e-3).any(axis=-1)
        solid = np.asarray(drawn.alpha) > 0.5
        assert solid.mean() > 0.005
        assert away.mean() < 0.1 * solid.mean()
    moves = [
        np.abs(np.asarray(a[1].rgb - b[1].rgb)).max()
        for a, b in zip(by_hand[:-1], by_hand[1:], strict=True)
    ]
    assert min(moves) > 0.01  # The feedback changes from level to level.


@pytest.fixture(scope="module")
def sampled(setting):
    return sample.generate(**setting, key=jax.random.key(5))


def test_alg2_one_compiled_loop_is_the_levels_one_by_one(loop, sampled):
    last = loop[1][-1]
    # The same operations, fused otherwise; see above for the sizes.
    close(sampled.views, last.views, 1e-4)
    close(sampled.reconstruction.rendering.rgb, last.reconstruction.rendering.rgb, 1e-4)
    close(sampled.reconstruction.gaussians.means, last.reconstruction.gaussians.means, 1e-4)


def test_same_key_samples_the_same_bits_and_another_something_else(setting, sampled):
    again = sample.generate(**setting, key=jax.random.key(5))
    chex.assert_trees_all_equal(sampled, again)
    other = sample.generate(**setting, key=jax.random.key(6))
    assert np.abs(np.asarray(other.views - sampled.views)).max() > 0.01


def test_alg2_starts_from_noise_of_sigma_max_without_feedback(toy, setting, start):
    _, state = start
    assert state.maps.rgb.shape == (2, 4, 16, 16, 3)
    assert not np.any(state.maps.rgb)
    assert not np.any(state.maps.ccm)
    image = jnp.broadcast_to(setting["image"][:1], (40, 16, 16, 3))
    _, many = sample.prepare(toy, image, jax.random.key(0))
    noise = np.asarray(many.x) / 700
    assert noise.shape == (40, 4, 8, 8, 4)
    # 40,960 normal draws: four standard deviations of mean and deviation.
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)


def test_condition_has_the_noise_that_its_id_tells(toy, setting):
    strong = replace(toy.config, sample=replace(toy.config.sample, condition_noise=0.5))
    conditions = [
        sample.prepare(replace(toy, config=config), setting["image"], jax.random.key(2))[0]
        for config in (toy.config, strong)
    ]
    ids = [c.added_ids[0] for c in conditions]
    np.testing.assert_allclose(ids, [[6, 127, 0.02], [6, 127, 0.5]], rtol=1e-7)  # float32.
    image = setting["image"]
    clean = encode_condition(toy, image, jnp.zeros_like(image), jnp.zeros(2))
    moved = [np.abs(np.asarray(c.latents - clean.latents)).mean() for c in conditions]
    # 25 times the noise; tanh in the toy encoder bends that a little.
    assert 15 < moved[1] / moved[0] < 30
    np.testing.assert_array_equal(conditions[1].clip, clean.clip)


def test_alg2_ends_at_the_last_clean_estimate(toy, loop):
    states, found = loop
    decoded = toy.networks.vae.apply(toy.frozen.vae, states[-1].x / 0.18215, method="decode")
    # x + (0 - sigma) (x - x0) / sigma = x0, but for the rounding of its terms.
    np.testing.assert_allclose(decoded, found[-1].views, atol=1e-5)


def test_alg2_what_is_returned_was_made_from_the_views_returned(setting, loop):
    _, found = loop
    c_noise = jnp.full(2, 0.25 * np.log(0.002))
    model = setting["model"]
    lgm, cameras = model.networks.lgm, setting["cameras"]
    gaussians = lgm.apply(model.params.lgm, found[-1].views, cameras, c_noise)
    np.testing.assert_allclose(found[-1].reconstruction.gaussians.means, gaussians.means, atol=1e-5)


def test_feedback_matters_and_can_be_switched_off(setting, start, loop):
    config = replace(setting["model"].config, sample=SampleConfig(levels=LEVELS, feedback=False))
    sigmas = sample.noise_levels(config.sample)
    states, found = run_loop(setting, start, sigmas, config)
    for state in states:
        assert not np.any(state.maps.rgb)
        assert not np.any(state.maps.ccm)
    # The first level is the same: there is no feedback yet.
    np.testing.assert_allclose(found[0].views, loop[1][0].views, atol=1e-6)
    assert np.abs(np.asarray(found[-1].views - loop[1][-1].views)).max() > 0.01


def test_all_levels_share_one_compiled_program_whatever_their_guidance(setting, start, loop):
    before = sample.sample_step._cache_size()
    sigmas = sample.noise_levels(setting["model"].config.sample)
    run_loop(setting, start, sigmas)
    condition, state = start
    assert np.ptp(state.guidance) == 2  # It rises from 1 to 3, as the config has it.
    stronger = replace(state, guidance=2 * state.guidance)
    _, found = run_loop(setting, (condition, stronger), sigmas)
    assert before >= 1
    assert sample.sample_step._cache_size() == before
    # 2e-3: where the guidance has no effect, they are the same bit for bit.
    assert np.abs(found[0].views - loop[1][0].views).max() > 2e-3


def gaussian_denoiser(x, sigma):
    """The best estimate for data of unit variance: Wiener's x / (1 + sigma^2)."""
    return x / (1 + sigma**2)[:, None, None, None, None]


def solve(solver, steps):
    """From sigma 3 to 0.5; the exact solution scales x by sqrt(1.25 / 10)."""
    x = jnp.linspace(-2, 2, 2 * 3 * 2 * 5).reshape(2, 3, 1, 2, 5)
    start = x
    sigmas = jnp.linspace(3.0, 0.5, steps + 1)

    def step(x, pair):
        x0 = gaussian_denoiser(x, jnp.full(2, pair[0]))
        return sample.ode_step(gaussian_denoiser, x, x0, *pair, solver), None

    x, _ = jax.lax.scan(step, x, (sigmas[:-1], sigmas[1:]))
    return np.abs(np.asarray(x - start * np.sqrt(1.25 / 10))).max()


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_eq3_steps_converge_to_the_exact_solution_with_the_order_of_their_solver(solver, order):
    errors = np.array([solve(solver, steps) for steps in (4, 8, 16)])
    # The error after n steps is c n^-order (1 + O(1 / n)), and rounding is 1e-6.
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), order, atol=0.35)
    assert errors[-1] < (0.1 if order == 1 else 0.01)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_eq3_last_step_lands_on_the_estimate(solver):
    x, x0 = jax.random.normal(jax.random.key(0), (2, 2, 3, 1, 2, 4))
    found = sample.ode_step(gaussian_denoiser, x, x0, jnp.array(0.002), jnp.array(0.0), solver)
    # float32: (x - x0) / 0.002 * 0.002, plus x.
    np.testing.assert_allclose(found, x0, atol=1e-6)


def test_euler_step_by_hand():
    x, x0 = jnp.full((1, 1, 1, 1, 1), 10.0), jnp.full((1, 1, 1, 1, 1), 4.0)
    found = sample.ode_step(gaussian_denoiser, x, x0, jnp.array(3.0), jnp.array(1.0), "euler")
    # The slope is (10 - 4) / 3 = 2, and sigma falls by 2.
    np.testing.assert_allclose(found, 6, rtol=1e-6)


def test_euler_step_is_that_of_diffrax():
    x, x0 = jax.random.normal(jax.random.key(0), (2, 2, 3, 1, 5, 4))
    sigma, sigma_next = jnp.array(7.3), jnp.array(2.9)
    term, euler = diffrax.ODETerm(lambda t, y, args: (x - x0) / sigma), diffrax.Euler()
    state = euler.init(term, sigma, sigma_next, x, None)
    expected = euler.step(term, sigma, sigma_next, x, None, state, made_jump=False)[0]
    found = sample.ode_step(gaussian_denoiser, x, x0, sigma, sigma_next, "euler")
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_defaults_are_the_papers_sampler():
    assert Config(name="paper").sample.solver == "euler"
