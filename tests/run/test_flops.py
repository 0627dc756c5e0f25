"""Counted operations against hand-made counts, convolutions of ones, and counts at full size."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from o3d_jax.config import Config, UnetConfig
from o3d_jax.nn.networks import apply, build_networks
from o3d_jax.parallel.layout import AXES
from o3d_jax.run import flops
from o3d_jax.run.flops import count_flops, train_step_flops
from o3d_jax.types import Cameras, Condition, Maps


def ones(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_product_of_matrices_is_two_operations_for_each_pair_of_numbers():
    assert count_flops(jnp.matmul, ones(3, 5), ones(5, 7)) == (2 * 3 * 5 * 7, 0)
    product = functools.partial(jnp.einsum, "bij,bkjc->bikc")  # With a batch axis, and two free.
    assert count_flops(product, ones(2, 3, 5), ones(2, 4, 5, 6)).total == 2 * 2 * 3 * 4 * 6 * 5
    assert count_flops(lambda x: x * x + 1, ones(3, 5)).total == 0


def convolve(x, kernel, **options):
    return lax.conv_general_dilated(
        x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


CONVOLUTIONS = [
    ((2, 9, 8, 3), (3, 3, 3, 5), {"window_strides": (1, 1), "padding": "SAME"}),
    ((2, 9, 8, 3), (3, 2, 3, 5), {"window_strides": (2, 3), "padding": ((1, 1), (0, 2))}),
    ((1, 7, 5, 6), (3, 3, 2, 9), {"window_strides": (2, 1), "padding": "SAME", "groups": 3}),
    ((1, 7, 5, 4), (3, 3, 1, 4), {"window_strides": (1, 2), "padding": "SAME", "groups": 4}),
    (
        (1, 9, 11, 2),
        (3, 2, 2, 3),
        {"window_strides": (2, 2), "padding": "SAME", "dilation": (2, 3)},
    ),
]


@pytest.mark.parametrize(("image", "kernel", "options"), CONVOLUTIONS)
def test_a_convolution_and_its_gradients_count_the_products_of_numbers_that_meet(
    image, kernel, options
):
    options = dict(options)
    options["feature_group_count"] = options.pop("groups", 1)
    options["rhs_dilation"] = options.pop("dilation", (1, 1))
    run = functools.partial(convolve, **options)
    # Of ones: each output is the number of products that it sums. Padding adds nothing to it.
    met = int(run(jnp.ones(image), jnp.ones(kernel)).sum())
    forward = count_flops(run, ones(*image), ones(*kernel)).total
    assert forward == 2 * met

    def gradients(x, k, cotangent):
        return jax.vjp(run, x, k)[1](cotangent)

    shape = jax.eval_shape(run, ones(*image), ones(*kernel)).shape
    both = count_flops(gradients, ones(*image), ones(*kernel), ones(*shape)).total
    assert both == 3 * forward  # The output is computed too.


def test_an_upsampling_convolution_does_not_count_the_zeros_that_it_puts_in():
    options = {"window_strides": (1,), "padding": ((1, 1),), "lhs_dilation": (2,)}
    run = functools.partial(
        lax.conv_general_dilated, dimension_numbers=("NHC", "HIO", "NHC"), **options
    )
    # Three numbers a_b_c and three taps: every number meets the middle tap; of the outer taps only
    # those places where it is not past the border.
    assert count_flops(run, ones(1, 3, 1), ones(3, 1, 1)).total == 2 * (3 + 2 + 2)


def test_loops_count_as_often_as_they_run():
    def body(carry, _):
        return carry @ carry, None

    once = 2 * 4**3
    assert count_flops(lambda x: lax.scan(body, x, None, length=6)[0], ones(4, 4)) == (6 * once, 0)
    fixed = count_flops(lambda x: lax.fori_loop(0, 5, lambda i, x: x @ x, x), ones(4, 4))
    assert fixed == (5 * once, 0)
    nested = count_flops(
        lambda x: lax.scan(lambda c, _: (lax.scan(body, c, None, length=3)[0], None), x, None, 7)[
            0
        ],
        ones(4, 4),
    )
    assert nested == (21 * once, 0)

    def until_small(x):
        return lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ x, x)

    assert count_flops(until_small, ones(4, 4)) == (once, 1)
    cheap = count_flops(
        lambda x: lax.while_loop(lambda x: x.sum() > 1, lambda x: x / 2, x), ones(4)
    )
    assert cheap == (0, 0)


def test_of_branches_the_larger_counts():
    def run(flag, x):
        return lax.cond(flag, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert count_flops(run, jax.ShapeDtypeStruct((), bool), ones(4, 4)).total == 2 * 2 * 4**3


def test_of_branches_for_platforms_that_of_all_others_counts():
    def run(x):
        return lax.platform_dependent(x, cpu=lambda x: x @ x @ x, default=lambda x: x @ x)

    assert count_flops(run, ones(4, 4)).total == 2 * 4**3


def test_what_is_computed_anew_counts_again():
    def layer(x, w):
        return jnp.sin(x @ w)

    def gradient(layer):
        return jax.grad(lambda w, x: layer(layer(x, w), w).sum())

    once = 2 * 3 * 5 * 5
    # Two layers; of each the gradients of its inputs, but for the first layer's.
    kept = count_flops(gradient(layer), ones(5, 5), ones(3, 5)).total
    assert kept == (2 + 3) * once
    anew = count_flops(gradient(jax.checkpoint(layer)), ones(5, 5), ones(3, 5)).total
    assert anew == kept + 2 * once


def test_functions_with_derivatives_of_their_own_count():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
    once = 2 * 3 * 5 * 7
    assert count_flops(product, ones(3, 5), ones(5, 7)).total == once
    gradient = jax.grad(lambda x, w: product(x, w).sum(), argnums=(0, 1))
    assert count_flops(jax.jit(gradient), ones(3, 5), ones(5, 7)).total == 3 * once


@pytest.mark.parametrize("axes", [("data", "fsdp"), ("data",)])
def test_work_that_is_split_over_devices_counts_as_if_it_were_not(axes):
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), AXES, axis_types=auto)
    split = jax.shard_map(
        lambda x, w: x @ w,
        mesh=mesh,
        in_specs=(PartitionSpec(axes), PartitionSpec()),
        out_specs=PartitionSpec(axes),
        axis_names=set(axes),
    )
    assert count_flops(jax.jit(split), ones(16, 3), ones(3, 5)).total == 2 * 16 * 3 * 5


def test_a_step_counts_its_batch_and_the_mean_over_the_coin(toy):
    def of(probability, batch_size=3):
        diffusion = dataclasses.replace(toy.config.diffusion, feedback_probability=probability)
        train = dataclasses.replace(toy.config.train, batch_size=batch_size)
        config = dataclasses.replace(toy.config, diffusion=diffusion, train=train)
        return train_step_flops(config, toy.networks).total

    without, sometimes, always = of(0.0, batch_size=5) * 3 // 5, of(0.25), of(1.0)
    assert sometimes == round(0.75 * without + 0.25 * always)
    # Feedback costs one more pass through the denoiser, without a gradient.
    shapes = one_object(toy.config.model)
    unet = count_flops(functools.partial(apply, toy.networks.unet), toy.params.unet, *shapes)
    assert always - without == 3 * unet.total


def one_object(model):
    """What the denoiser reads."""
    v, size, latents = model.num_views, model.image_size, model.latent_size

    def inputs():
        return (
            jnp.zeros((1, v, latents, latents, model.vae.latent_channels)),
            jnp.zeros((1,)),
            Condition(
                clip=jnp.zeros((1, 1, model.clip.projection_dim)),
                latents=jnp.zeros((1, latents, latents, model.vae.latent_channels)),
                added_ids=jnp.zeros((1, 3)),
            ),
            Cameras(camera_to_world=jnp.zeros((1, v, 4, 4)), intrinsics=jnp.zeros((1, v, 3, 3))),
            Maps.nothing(1, v, size, size),
        )

    return jax.eval_shape(inputs)


@pytest.fixture(scope="module")
def full_size():
    """The paper's networks; nothing is computed anew."""
    return build_networks(dataclasses.replace(Config(name="full").model, remat=False), "vgg")


def variables(network, *inputs):
    """Shapes of a network's parameters."""
    return jax.eval_shape(network.init, jax.random.key(0), *inputs)


@pytest.fixture(params=["padding counts", "as we count"])
def known_to(request, monkeypatch):
    """How near we come to counts by another program, which takes padding for numbers.

    Counting likewise, the known figures come out as rounded. Without padding, a convolution of
    three taps has (3n - 2) / 3n of its products along an axis: 0.92 over 8 frames or 8 latents.
    """
    if request.param == "as we count":
        return 0.07
    monkeypatch.setattr(flops, "_pairs", lambda window: window.taps * window.outputs)
    return 0.02


def test_the_counts_of_vae_clip_and_lpips_at_full_size_are_the_known_ones(full_size, known_to):
    networks = full_size
    views, image = ones(8, 512, 512, 3), ones(1, 512, 512, 3)
    encode = functools.partial(apply, networks.vae, method="encode")
    decode = functools.partial(apply, networks.vae, method="decode")
    vae = variables(networks.vae, ones(1, 8, 512, 512, 3))
    clip, lpips = variables(networks.clip, image), variables(networks.lpips, image, image)
    found = [
        count_flops(encode, vae, views).total,
        count_flops(decode, vae, ones(1, 8, 64, 64, 4)).total,
        count_flops(functools.partial(apply, networks.clip), clip, image).total,
        count_flops(functools.partial(apply, networks.lpips), lpips, views, views).total / 2,
    ]
    np.testing.assert_allclose(np.array(found) / 1e12, [8.9, 24.3, 0.33, 1.3], rtol=known_to)


@pytest.mark.slow
def test_the_counts_of_denoiser_and_reconstruction_at_full_size_are_the_known_ones(
    full_size, known_to
):
    networks, inputs = full_size, one_object(Config(name="full").model)
    bare = networks.unet.clone(config=UnetConfig(feedback="none"))
    unet = variables(bare, *inputs)
    seen = (ones(1, 8, 512, 512, 3), inputs[3], inputs[1])
    lgm = variables(networks.lgm, *seen)
    # Queries and outputs of attention to one token, spatial and temporal, which we don't compute:
    # two attentions, two products, 5 blocks at each of three scales and one in the middle.
    tokens, widths = 8 * 64**2 / 4 ** np.arange(4), np.array([320, 640, 1280, 1280])
    never_computed = (2 * 2 * 2 * tokens * widths**2 * [5, 5, 5, 1]).sum()
    found = [
        count_flops(functools.partial(apply, bare), unet, *inputs).total + never_computed,
        count_flops(functools.partial(apply, networks.lgm), lgm, *seen).total,
    ]
    np.testing.assert_allclose(np.array(found) / 1e12, [10.2, 1.78], rtol=known_to)


@pytest.mark.slow
def test_the_gradient_at_full_size_costs_twice_the_denoiser(full_size):
    networks, inputs = full_size, one_object(Config(name="full").model)
    forward = functools.partial(apply, networks.unet)
    unet = variables(networks.unet, *inputs)

    def gradient(params, *inputs):
        return jax.grad(lambda p: forward(p, *inputs).astype(jnp.float32).sum())(params)

    once, with_backward = (
        count_flops(function, unet, *inputs).total for function in (forward, gradient)
    )
    # Less what only the gradient of the inputs would need: of the first layers.
    np.testing.assert_allclose(with_backward / once, 3, rtol=0.01)


@pytest.mark.slow
def test_memory_saved_by_computing_anew_does_not_count_as_model_flops(tiny):
    def of(remat):
        model = dataclasses.replace(tiny.model, remat=remat)
        return train_step_flops(tiny, build_networks(model))

    assert of(True) == of(False)
