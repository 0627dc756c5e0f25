"""Algorithm 1 written out once more, formula by formula, as an oracle for `steps/train.py`."""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from o3d_jax.splat import render
from o3d_jax.steps.losses import LossTerms
from o3d_jax.types import Condition, Maps

SCALING_FACTOR = 0.18215  # SVD's.


def column(values, like):
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def condition_of(networks, params, frozen, image, draws):
    """SVD's conditioning; below 0.2 the embedding is dropped, from 0.1 to 0.3 the latents."""
    std = column(draws.condition.sigma, image)
    noisy = 0.5 * ((2 * image - 1) + std * draws.condition.noise) + 0.5
    clip = networks.clip.apply(params.clip, image)
    latents = networks.vae.apply(frozen.vae, noisy, method="encode").mean
    r = draws.condition.dropout
    ids = [jnp.full_like(r, 6), jnp.full_like(r, 127), draws.condition.sigma]
    return Condition(
        clip=jnp.where(column(r < 0.2, clip), 0, clip),
        latents=jnp.where(column((r >= 0.1) & (r < 0.3), latents), 0, latents),
        added_ids=jnp.stack(ids, axis=1),
    )


def coordinates(rendering, cameras):
    """App. A.2 with K in pixels; world coordinates by the extrinsics."""
    h, w = rendering.depth.shape[2:4]
    k = jnp.diag(jnp.array([w, h, 1.0])) @ cameras.intrinsics
    v, u = jnp.meshgrid(jnp.arange(h) + 0.5, jnp.arange(w) + 0.5, indexing="ij")
    uv1 = jnp.stack([u, v, jnp.ones_like(u)], axis=-1)
    solid = rendering.alpha > 0.5
    depth = rendering.depth / jnp.where(solid, rendering.alpha, 1)
    local = jnp.einsum("bvij,hwj->bvhwi", jnp.linalg.inv(k), uv1) * depth
    rotation, center = cameras.camera_to_world[..., :3, :3], cameras.camera_to_world[..., :3, 3]
    world = jnp.einsum("bvij,bvhwj->bvhwi", rotation, local) + center[:, :, None, None]
    return jnp.where(solid, jnp.clip(world / 2 + 0.5, 0, 1), 0.5)


def denoiser(networks, params, frozen, batch, draws):
    """Clean latents, and the estimate of them from noisy ones as a function of the feedback."""
    x = SCALING_FACTOR * networks.vae.apply(frozen.vae, batch.images, method="encode").mean
    condition = condition_of(networks, params, frozen, batch.images[:, 0], draws)
    sigma = column(draws.sigma, x)
    c_noise = 0.25 * jnp.log(draws.sigma)
    noise_x = x + sigma * draws.noise

    def pred(maps):
        input_x = noise_x / jnp.sqrt(sigma**2 + 1)
        raw = networks.unet.apply(params.unet, input_x, c_noise, condition, batch.cameras, maps)
        return noise_x / (sigma**2 + 1) - sigma / jnp.sqrt(sigma**2 + 1) * raw

    return x, pred


def nothing(images):
    """No feedback."""
    return Maps(rgb=jnp.zeros_like(images), ccm=jnp.zeros_like(images))


def diffusion_errors(x, pred_x, sigma):
    """Eq. 5 with the weight of Eq. 11, an object each."""
    sigma = column(sigma, x)
    return ((1 + sigma**2) / sigma**2 * (pred_x - x) ** 2).mean(axis=(1, 2, 3, 4))


def train_loss(networks, optim, params, frozen, batch, draws, use_feedback, detach=stop_gradient):
    """The terms of the loss; `detach` is what Algorithm 1 does to the feedback."""
    b, _, h, w, _ = batch.images.shape
    x, pred = denoiser(networks, params, frozen, batch, draws)

    def recon_model(images, t):
        gaussians = networks.lgm.apply(params.lgm, images, batch.cameras, t)
        return render(gaussians, batch.cameras, (h, w), jnp.ones(3))

    def recon_loss(drawn):
        lpips = networks.lpips.apply(frozen.lpips, drawn.rgb, batch.images).mean()
        return jnp.mean((drawn.rgb - batch.images) ** 2), lpips

    pred_x = pred(nothing(batch.images))
    decoded = networks.vae.apply(frozen.vae, pred_x / SCALING_FACTOR, method="decode")
    noisy = recon_model(stop_gradient(decoded), 0.25 * jnp.log(draws.sigma))
    clean = recon_model(batch.images, jnp.zeros(b))
    maps = Maps(rgb=jnp.clip(noisy.rgb, 0, 1), ccm=coordinates(noisy, batch.cameras))
    pred_x = jnp.where(use_feedback, pred(detach(maps)), pred_x)
    diffusion = diffusion_errors(x, pred_x, draws.sigma).mean()
    (rgb_noisy, lpips_noisy), (rgb_clean, lpips_clean) = recon_loss(noisy), recon_loss(clean)
    recon = rgb_noisy + optim.lpips_weight * lpips_noisy
    recon += optim.clean_weight * (rgb_clean + optim.lpips_weight * lpips_clean)
    return LossTerms(
        total=diffusion + recon,
        diffusion=diffusion,
        rgb_noisy=rgb_noisy,
        rgb_clean=rgb_clean,
        lpips_noisy=lpips_noisy,
        lpips_clean=lpips_clean,
    )


def terms_and_gradients(loss):
    """Of a loss that gives its terms: these, and the gradient of each with respect to `params`.

    Each leaf of the gradients has a leading axis, in the order of `LossTerms`.
    """

    def run(params, *inputs):
        terms, pull = jax.vjp(lambda params: loss(params, *inputs), params)
        structure = jax.tree.structure(terms)
        basis = jax.tree.unflatten(structure, list(jnp.eye(structure.num_leaves)))
        return terms, jax.lax.map(lambda one: pull(one)[0], basis)

    return run
