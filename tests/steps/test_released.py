"""What the release's switches change in training; the golden steps in `tests/golden` hold them to
the original's numbers."""

import runpy
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.config import (
    Config,
    DataConfig,
    DiffusionConfig,
    LgmConfig,
    OptimConfig,
    UnetConfig,
)
from o3d_jax.steps import losses
from o3d_jax.steps.condition import encode_training_condition
from o3d_jax.steps.draws import draw
from o3d_jax.steps.reconstruct import encode_views, training_latents
from support import handwritten

CONFIGS = Path(__file__).parents[2] / "configs"

SWITCHES = {
    UnetConfig: {
        "ray_convention": "released",
        "ccm_convention": "released",
        "temporal_context": "interleaved",
    },
    LgmConfig: {"rotation_norm": "over_gaussians", "culling": "inria"},
    DataConfig: {"orbit_frames": "linspace"},
    DiffusionConfig: {
        "feedback_gradient": "flows",
        "clip_sees_noise_in_training": True,
        "training_latents": "sampled",
    },
    OptimConfig: {
        "reconstruction_loss": "l1",
        "lpips_network": "alex",
        "lpips_size": 512,
        "noisy_weight": 0.5,
        "clean_weight": 0.5,
        "ema_decay": 0.0,
    },
}
"""Where the release computes other numbers than the paper, but for what PAPER.md says has no field.
"""


def test_released_config_turns_all_switches_and_the_papers_none():
    released = runpy.run_path(str(CONFIGS / "released.py"))["config"]
    paper = runpy.run_path(str(CONFIGS / "ouroboros3d.py"))["config"]
    for kind, switches in SWITCHES.items():
        for config, wanted in ((released, switches), (paper, {})):
            model = config.model
            parts = (model.unet, model.lgm, config.data, config.diffusion, config.optim)
            part = next(part for part in parts if isinstance(part, kind))
            default = kind()
            for name in switches:
                assert getattr(part, name) == wanted.get(name, getattr(default, name)), name
            assert all(getattr(default, name) != value for name, value in switches.items())


def test_papers_table_names_every_switch():
    table = (Path(losses.__file__).parents[1] / "PAPER.md").read_text()
    missing = [n for names in SWITCHES.values() for n in names if f".{n}`" not in table]
    assert not missing


def with_switches(config: Config, **switches) -> Config:
    """Switches of the losses and of the conditioning."""
    own = {name: switches.pop(name) for name in tuple(switches) if name in vars(config.optim)}
    return replace(
        config,
        optim=replace(config.optim, **own),
        diffusion=replace(config.diffusion, **switches),
    )


def run(toy, batch, config, draws):
    def loss(params):
        model = replace(toy, config=config, params=params)
        return losses.train_loss(model, batch, draws, True)

    return jax.jit(jax.grad(loss, has_aux=True))(toy.params)


@pytest.fixture(scope="module")
def draws(toy):
    drawn = draw(toy.config, 3, jax.random.key(7))
    return replace(drawn, condition=replace(drawn.condition, dropout=jnp.ones(3)))


def test_feedback_with_gradient_reaches_lgm_as_written_by_hand(toy, batch, draws):
    config = with_switches(toy.config, feedback_gradient="flows", lpips_weight=0.0)

    def by_hand(params):
        given = (params, toy.frozen, batch, draws, True)
        terms = handwritten.train_loss(toy.networks, config.optim, *given, detach=lambda maps: maps)
        return terms.total

    expected = jax.jit(jax.grad(by_hand))(toy.params)
    found, _ = run(toy, batch, config, draws)

    def check(a, b):
        # Relative to the largest: small entries are small differences of large ones.
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-4 * np.abs(b).max() + 1e-9)

    jax.tree.map(check, found, expected)
    stopped, _ = run(toy, batch, with_switches(config, feedback_gradient="stopped"), draws)
    apart = [
        np.abs(a - b).max() / np.abs(b).max()
        for a, b in zip(*map(jax.tree.leaves, (found.lgm, stopped.lgm)), strict=True)
    ]
    assert max(apart) > 1e-2
    same = zip(*map(jax.tree.leaves, (found.unet, stopped.unet)), strict=True)
    for a, b in same:  # The estimate that feedback is made of has no gradient either way.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max() + 1e-9)


def test_contexts_are_interleaved_in_sampling_alone(toy):
    unet = toy.networks.unet
    config = replace(unet.config, temporal_context="interleaved", ray_convention="released")
    trained = losses.one_at_a_time(unet.clone(config=config))
    assert trained.config == replace(config, temporal_context="per_video")
    assert trained.clone(config=unet.config) == unet


def test_lpips_size_is_what_larger_views_are_reduced_to(toy):
    size = 31  # Of views of 32 px.
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.uniform(size=(1, 2, 32, 32, 3)), jnp.float32) for _ in range(2))

    def distance(size):
        optim = replace(toy.config.optim, lpips_size=size)
        return losses._lpips(replace(toy, config=replace(toy.config, optim=optim)), a, b)

    def reduced(x):
        return jax.image.resize(x, (1, 2, size, size, 3), "linear")

    lpips = toy.networks.lpips
    whole = lpips.apply(toy.frozen.lpips, a, b).mean()
    smaller = lpips.apply(toy.frozen.lpips, reduced(a), reduced(b)).mean()
    np.testing.assert_allclose(distance(32), whole, rtol=1e-6)  # float32 rounding.
    np.testing.assert_allclose(distance(size), smaller, rtol=1e-6)
    assert abs(smaller / whole - 1) > 0.01


def test_absolute_error_and_weights_enter_the_total(toy, batch, draws):
    config = with_switches(toy.config, reconstruction_loss="l1", noisy_weight=0.3, clean_weight=0.6)
    _, terms = run(toy, batch, config, draws)
    _, square = run(toy, batch, toy.config, draws)
    weight = config.optim.lpips_weight
    noisy = terms.rgb_noisy + weight * terms.lpips_noisy
    clean = terms.rgb_clean + weight * terms.lpips_clean
    # float32 rounding.
    np.testing.assert_allclose(terms.total, terms.diffusion + 0.3 * noisy + 0.6 * clean, rtol=1e-6)
    a = jnp.array([[0.1, 0.7, 0.4]])
    np.testing.assert_allclose(losses.mean_absolute(a, jnp.full((1, 3), 0.5)), 0.7 / 3, rtol=1e-6)
    # The mean of absolutes is at least that of squares of numbers below 1, at most its root.
    for name in ("rgb_noisy", "rgb_clean"):
        low, high = float(getattr(square, name)), float(getattr(square, name)) ** 0.5
        assert 1.05 * low < float(getattr(terms, name)) < high


def test_sampled_latents_are_the_posteriors_mean_and_deviation_times_noise(toy, batch, draws):
    vae, scale = toy.networks.vae, toy.networks.vae.config.scaling_factor
    moments = vae.apply(toy.frozen.vae, batch.images, method="encode")
    noise = draws.posterior
    expected = scale * (moments.mean + jnp.sqrt(jnp.exp(moments.logvar)) * noise)
    config = with_switches(toy.config, training_latents="sampled")
    latents_of = training_latents(config.diffusion, noise.reshape(-1, *noise.shape[2:]))
    found = encode_views(toy, batch.images, latents_of)
    np.testing.assert_allclose(found, expected, atol=1e-6)  # float32 rounding.
    model = replace(toy, config=config)
    np.testing.assert_allclose(losses.noised(model, batch, draws)[0], expected, atol=1e-6)


@pytest.mark.parametrize("noisy", [False, True])
def test_condition_in_training_by_both_switches(toy, batch, draws, noisy):
    image, condition = batch.images[:, 0], draws.condition
    std = condition.sigma.reshape(-1, 1, 1, 1)
    seen = image + std / 2 * condition.noise
    moments = toy.networks.vae.apply(toy.frozen.vae, seen, method="encode")
    kinds = {"training_latents": "sampled", "clip_sees_noise_in_training": True}
    config = with_switches(toy.config, **(kinds if noisy else {}))
    found = encode_training_condition(replace(toy, config=config), image, condition)
    clip = toy.networks.clip.apply(toy.params.clip, seen if noisy else image)
    latents = moments.mean
    if noisy:
        latents = latents + jnp.exp(moments.logvar / 2) * condition.posterior
    np.testing.assert_allclose(found.clip, clip, atol=1e-6)  # float32 rounding.
    np.testing.assert_allclose(found.latents, latents, atol=1e-6)
    other = toy.networks.clip.apply(toy.params.clip, image if noisy else seen)
    assert np.abs(np.asarray(clip - other)).max() > 1e-3
