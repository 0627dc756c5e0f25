"""Training of single networks: their losses, steps of them on one device and on eight, and what
becomes of a trained VAE."""

import functools
from dataclasses import fields, replace
from unittest.mock import create_autospec

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from o3d_jax.config import OptimConfig
from o3d_jax.metrics import ssim
from o3d_jax.nn.vae import Vae
from o3d_jax.parallel.layout import make_layout
from o3d_jax.parallel.shards import place, place_batch
from o3d_jax.run.programs import Halves
from o3d_jax.splat.reference import render_reference
from o3d_jax.steps.draws import draw, draw_coin
from o3d_jax.steps.losses import ReconstructionErrors, _total
from o3d_jax.steps.parts import KL_WEIGHT, scale_latents, split_parts
from o3d_jax.steps.train import (
    StepInputs,
    Training,
    init_state,
    make_optimizer,
    train_step,
    train_step_gradient,
    train_step_update,
)
from o3d_jax.types import Frozen, Params
from support import handwritten, step_reports
from support.toy_networks import filled, random_batch

pytestmark = pytest.mark.usefixtures("quick_compilation")
NETWORKS = {"vae": {"vae"}, "lgm": {"lgm"}, "unet": {"unet", "clip"}}
"""What trains in each part; the tiny configuration's image tower trains along."""


@pytest.mark.parametrize("patch", [1, 2])
def test_scaled_latents_have_the_deviation_that_svd_assumes_and_decode_to_the_same(
    tiny, batch, patch
):
    """The real VAE, because `scale_latents` knows its layers, with no weight at zero."""
    vae = Vae(config=replace(tiny.model.vae, patch=patch))
    images = batch.images[:2]
    params = filled(jax.eval_shape(vae.init, jax.random.key(0), images))

    @jax.jit
    def run(params):
        moments = vae.apply(params, images, method="encode")
        return moments, vae.apply(params, moments.mean, method="decode")

    before, images_before = run(params)
    scaled = scale_latents(vae, params, images)
    after, images_after = run(scaled)

    def deviations(mean):
        """Of each channel of the VAE; each has a channel for every place in a patch."""
        return np.asarray(mean).reshape(-1, 4, patch**2).std(axis=(0, 2))

    std = deviations(after.mean)
    np.testing.assert_allclose(std * 0.18215, 1, rtol=1e-5)  # float32 sums.
    # The posterior is scaled with its mean: log variances shift by the log of the gain squared.
    gain = np.repeat(std / deviations(before.mean), patch**2)
    shift = np.asarray(after.logvar - before.logvar)
    np.testing.assert_allclose(shift, np.broadcast_to(2 * np.log(gain), shift.shape), atol=1e-4)
    # float32 rounding through a dozen layers.
    np.testing.assert_allclose(images_after, images_before, atol=1e-4)


def named(networks):
    """Those that are there."""
    return {f.name for f in fields(networks) if getattr(networks, f.name) is not None}


def test_a_part_trains_its_networks_and_keeps_of_the_frozen_ones_those_its_loss_reads(toy):
    whole, frozen = toy.params, replace(toy.frozen, clip={"params": np.ones(2)})
    split = {part: split_parts(part, whole, frozen) for part in (*NETWORKS, "joint")}
    assert {part: named(params) for part, (params, _) in split.items()} == NETWORKS | {
        "joint": {"unet", "lgm", "clip"}
    }
    assert {part: named(rest) for part, (_, rest) in split.items()} == {
        "vae": set(),
        "lgm": {"lpips"},
        "unet": {"vae", "clip"},
        "joint": {"vae", "clip", "lpips"},
    }
    assert split["vae"][0].vae is frozen.vae and split["unet"][0].clip is whole.clip


def vae_loss(toy, params, frozen, batch, draws):
    """Error through latents that are drawn from the posterior, and KL(N(m, s^2) || N(0, 1)), which
    is -log s + (s^2 + m^2 - 1) / 2 a value."""
    moments = toy.networks.vae.apply(params.vae, batch.images, method="encode")
    mean, deviation = moments.mean, jnp.exp(moments.logvar / 2)
    latents = mean + deviation * draws.posterior
    decoded = toy.networks.vae.apply(params.vae, latents, method="decode")
    error = jnp.mean((decoded - batch.images) ** 2)
    kl = jnp.mean(-jnp.log(deviation) + (deviation**2 + mean**2 - 1) / 2)
    return error + KL_WEIGHT * kl, {"decoded": error, "kl": kl}


def lgm_loss(toy, params, frozen, batch, draws):
    """Eq. 2, alpha and structure, of renders of the object made from true views without noise."""
    zeros = jnp.zeros(len(batch.images))
    gaussians = toy.networks.lgm.apply(params.lgm, batch.images, batch.cameras, zeros)
    one = functools.partial(render_reference, size=batch.images.shape[2:4], background=jnp.ones(3))
    drawn = jax.vmap(one)(gaussians, batch.cameras)
    rgb = jnp.mean((drawn.rgb - batch.images) ** 2)
    lpips = toy.networks.lpips.apply(frozen.lpips, drawn.rgb, batch.images).mean()
    alpha = jnp.mean((drawn.alpha - batch.alpha) ** 2)
    structure = 1 - ssim(drawn.rgb, batch.images).mean()
    terms = {"rgb_clean": rgb, "lpips_clean": lpips, "alpha_clean": alpha, "ssim_clean": structure}
    return rgb + 0.7 * lpips + 0.4 * alpha + 0.3 * structure, terms


def unet_loss(toy, params, frozen, batch, draws):
    """The denoiser's term of Algorithm 1, written by hand, without feedback."""
    x, pred = handwritten.denoiser(toy.networks, params, frozen, batch, draws)
    found = pred(handwritten.nothing(batch.images))
    error = handwritten.diffusion_errors(x, found, draws.sigma).mean()
    return error, {"diffusion": error}


BY_HAND = {"vae": vae_loss, "lgm": lgm_loss, "unet": unet_loss}


def test_each_objects_errors_have_their_weights_and_names():
    """Of the joint loss; none of the numbers can stand for another."""
    optim = OptimConfig(
        lpips_weight=3.0, alpha_weight=5.0, ssim_weight=7.0, noisy_weight=11.0, clean_weight=13.0
    )
    noisy, clean = ({"rgb": 1 + i, "lpips": 2 + i, "alpha": 4 + i, "ssim": 8 + i} for i in (0, 40))
    errors = [
        ReconstructionErrors(**jax.tree.map(jnp.float32, values)) for values in (noisy, clean)
    ]
    total, terms = _total(optim, jnp.float32(17), *errors)

    weighted = [v["rgb"] + 3 * v["lpips"] + 5 * v["alpha"] + 7 * v["ssim"] for v in (noisy, clean)]
    assert total == terms.total == 17 + 11 * weighted[0] + 13 * weighted[1]
    for name in noisy:
        assert getattr(terms, f"{name}_noisy") == noisy[name]
        assert getattr(terms, f"{name}_clean") == clean[name]


@pytest.fixture(scope="module")
def batch8(tiny):
    """One object a device, with silhouettes."""
    batch = random_batch(tiny, 8)
    shape = (*batch.images.shape[:-1], 1)
    return replace(batch, alpha=jnp.asarray(np.random.default_rng(5).uniform(size=shape), "f4"))


def config_of(toy, part):
    optim = replace(toy.config.optim, alpha_weight=0.4, ssim_weight=0.3)
    return replace(toy.config, train=replace(toy.config.train, part=part), optim=optim)


def adam_of(state):
    leaves = jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu"))
    return next(leaf for leaf in leaves if isinstance(leaf, optax.ScaleByAdamState))


def one_step(toy, config, batch, layout, in_halves):
    """From the start; state and report."""
    optimizer = make_optimizer(config.optim, 10)
    params, frozen = split_parts(config.train.part, toy.params, toy.frozen)
    fresh = init_state(jax.tree.map(jnp.copy, params), optimizer)
    state = place(fresh, layout.of_state(fresh))
    frozen = place(frozen, layout.of_frozen(frozen))
    given = StepInputs(batch=place_batch(layout, batch), key=jax.random.key(3))
    training, coin = Training(config, toy.networks, optimizer, layout), draw_coin(config, 0)
    if in_halves:
        gradient, report = train_step_gradient(training, state, frozen, given, use_feedback=coin)
        return train_step_update(training, state, gradient), report
    return train_step(training, state, frozen, given, use_feedback=coin)


@pytest.mark.parametrize("part", list(NETWORKS))
def test_a_step_of_a_part_follows_the_gradient_of_its_loss_by_hand(toy, batch8, part):
    """As one program on one device, and as two on eight, which share out larger arrays."""
    config = config_of(toy, part)
    params, frozen = split_parts(part, toy.params, toy.frozen)
    draws = draw(config, 8, jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 0), 0))

    def loss(params):
        return BY_HAND[part](toy, params, frozen, batch8, draws)

    (total, terms), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    norm = np.sqrt(sum(np.sum(np.square(g, dtype="f8")) for g in jax.tree.leaves(gradient)))

    def check(moment, expected):
        # After one step Adam's mean is a tenth of the gradient, clipped at norm 1. These are sums
        # of both signs over objects and pixels, in another order.
        moment, expected = moment / 0.1, expected / max(norm, 1)
        np.testing.assert_allclose(moment, expected, atol=1e-4 * np.abs(expected).max() + 1e-7)

    for devices in (1, 8):
        layout = make_layout(replace(config.train, smallest_shared=90), jax.devices()[:devices])
        state, report = one_step(toy, config, batch8, layout, in_halves=devices > 1)
        found = {name: x for name, x in vars(report.terms).items() if x is not None}
        expected = {"total": total} | terms
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5)  # float32 sums.
        np.testing.assert_allclose(report.gradient_norm, norm, rtol=1e-4)
        assert (report.sigma is None) == (part != "unet")
        jax.tree.map(check, adam_of(state).mu, gradient)
        assert named(state.params) == named(state.ema) == NETWORKS[part]


def test_a_step_in_halves_skips_what_is_not_finite(toy, batch8):
    """The state keeps its values and its places, as the compiled halves ask, but for its number."""
    layout = make_layout(replace(toy.config.train, smallest_shared=90), jax.devices())
    fresh = init_state(jax.tree.map(jnp.copy, toy.params), make_optimizer(toy.config.optim, 10))
    state = place(fresh, layout.of_state(fresh))
    gradient, update = (create_autospec(jax.stages.Compiled, instance=True) for _ in range(2))
    gradient.return_value = toy.params, step_reports.report(finite=False)
    halves = Halves(gradient, update)

    given = StepInputs(batch=batch8, key=jax.random.key(3))
    after, report = halves(state, toy.frozen, given)

    assert not report.is_finite and after.step == 1 and not update.called
    chex.assert_trees_all_equal(replace(after, step=state.step), state)
    chex.assert_trees_all_equal(*(jax.tree.map(lambda a: a.sharding, s) for s in (after, state)))


def test_no_part_but_joint_training_has_feedback(toy):
    for part in NETWORKS:
        assert not any(draw_coin(config_of(toy, part), step) for step in range(20))
    assert any(draw_coin(config_of(toy, "joint"), step) for step in range(20))


def test_silhouettes_are_asked_for_where_they_are_learned(toy, batch):
    config = config_of(toy, "lgm")
    optimizer = make_optimizer(config.optim, 10)
    state = init_state(Params(unet=None, lgm=toy.params.lgm), optimizer)
    training = Training(config, toy.networks, optimizer)
    frozen = Frozen(vae=None, lpips=toy.frozen.lpips)
    given = StepInputs(batch=batch, key=jax.random.key(0))
    with pytest.raises(ValueError, match="optim.alpha_weight 0.4 needs batches with alpha"):
        train_step(training, state, frozen, given, use_feedback=False)
