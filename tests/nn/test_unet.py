"""The denoiser has SVD's parameters, and rays and feedback enter where the release adds them."""

import functools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.config import UnetConfig
from o3d_jax.nn.unet import MultiViewUnet, SpatioTemporalUnet
from o3d_jax.run.flops import programs_within
from o3d_jax.types import Cameras, Condition, Maps
from o3d_jax.weights.pytorch.names import manifest
from support.quick import difference, jit, normal
from support.synthetic import synthetic_variables

MANIFEST = Path(__file__).parents[1] / "manifests" / "svd_unet.json"
CONFIG = UnetConfig(
    block_out_channels=(8, 12, 16),
    layers_per_block=1,
    num_attention_heads=(1, 2, 2),
    addition_time_embed_dim=4,
    norm_num_groups=4,
    feedback_blocks=1,
    ray_octaves=2,
)
B, V, H, W, C = 2, 3, 8, 16, 3
MODEL = MultiViewUnet(CONFIG, C, cross_attention_dim=5, remat="nothing")
ROUNDING = 2e-5  # Activations reach about 5; float32 rounds them to 5e-7, over some 50 layers.


def record(module, variables, *args, wanted="", **kwargs):
    """The output of `module`; by path, the (inputs, output) of the children that match `wanted`."""
    calls = {}

    def keep(call, call_args, call_kwargs, context):
        out = call(*call_args, **call_kwargs)
        path = "/".join(context.module.path)
        if context.method_name == "__call__" and re.fullmatch(wanted, path):
            calls[path] = (call_args, out)
        return out

    with nn.intercept_methods(keep):
        return module.apply(variables, *args, **kwargs), calls


@pytest.fixture(scope="module")
def inputs():
    pose = np.zeros((B, V, 4, 4), np.float32)
    pose[..., :3, :3] = np.linalg.qr(normal(0, B, V, 3, 3))[0]
    pose[..., :3, 3] = normal(1, B, V, 3)
    pose[..., 3, 3] = 1
    intrinsics = np.array([[1.1, 0, 0.5], [0, 1.1, 0.5], [0, 0, 1]], np.float32)
    return {
        "x": normal(2, B, V, H, W, C),
        "c_noise": jnp.array([0.3, -0.8], jnp.float32),
        "condition": Condition(
            clip=normal(3, B, 1, 5),
            latents=normal(4, B, H, W, C),
            added_ids=jnp.array([[6.0, 127.0, 0.02], [5.0, 100.0, 0.05]], jnp.float32),
        ),
        "cameras": Cameras(
            camera_to_world=jnp.asarray(pose),
            intrinsics=jnp.asarray(np.broadcast_to(intrinsics, (B, V, 3, 3))),
        ),
        "maps": Maps(
            rgb=0.5 + 0.2 * normal(5, B, V, 2 * H, 2 * W, 3),
            ccm=0.5 + 0.2 * normal(6, B, V, 2 * H, 2 * W, 3),
        ),
    }


@pytest.fixture(scope="module")
def variables(inputs):
    return synthetic_variables(MODEL, *inputs.values())


@pytest.fixture(scope="module")
def run_with():
    """The compiled model, with what entered and left its blocks."""
    wanted = r"down_plucker_.|mid_plucker|up_plucker_.|cond_encoder_.|unet/\w+"
    return jit(lambda variables, kwargs: record(MODEL, variables, wanted=wanted, **kwargs))


@pytest.fixture(scope="module")
def run(run_with, variables):
    return functools.partial(run_with, variables)


@pytest.fixture(scope="module")
def output(run, inputs):
    return run(inputs)[0]


@pytest.fixture(scope="module")
def half_program(inputs, variables):
    """What the network computes in bfloat16, with remat."""
    return jax.make_jaxpr(MODEL.clone(dtype=jnp.bfloat16).apply)(variables, *inputs.values())


def test_plain_unet_has_the_parameters_of_svd():
    x, c_noise, clip, ids = (
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((1, 2, 16, 8, 8), (1,), (1, 1, 1024), (1, 3))
    )
    shapes = jax.eval_shape(
        SpatioTemporalUnet(UnetConfig()).init, jax.random.key(0), x, c_noise, clip, ids
    )
    ours = manifest(shapes["params"])
    expected = json.loads(MANIFEST.read_text())
    assert ours == {name: tuple(shape) for name, shape in expected.items()}
    assert sum(map(math.prod, ours.values())) == 1_524_623_082


def test_output_has_the_shape_of_the_latents_and_is_float32(inputs, output, half_program):
    assert output.shape == half_program.out_avals[0].shape == inputs["x"].shape
    assert output.dtype == half_program.out_avals[0].dtype == jnp.float32


def convolved(program):
    """The types of all convolutions' results, in the order of the program."""
    for equation in program.eqns:
        if equation.primitive.name == "conv_general_dilated":
            yield equation.outvars[0].aval.dtype
        for inside in programs_within(equation.params):
            yield from convolved(inside)


def test_bfloat16_network_convolves_in_bfloat16_but_for_its_last_layer(half_program):
    dtypes = list(convolved(half_program.jaxpr))
    assert (dtypes.count(jnp.float32), dtypes[-1]) == (1, jnp.float32)
    assert dtypes.count(jnp.bfloat16) > 40


def test_remat_recomputes_every_residual_block_and_transformer(half_program):
    residual = 3 + 2 + 6  # Down, middle, up: three scales of one layer, the ups have one more.
    transformers = 2 + 1 + 4  # The same but for the last scale.
    recomputed = re.findall(r"= (?:checkpoint|remat\w*)\[", str(half_program))
    assert len(recomputed) == residual + transformers


@pytest.mark.parametrize(
    "change",
    [
        lambda i: {"x": i["x"] + normal(7, *i["x"].shape)},
        lambda i: {"c_noise": i["c_noise"] + 1},
        lambda i: {"condition": replace(i["condition"], clip=i["condition"].clip + 1)},
        lambda i: {"condition": replace(i["condition"], latents=i["condition"].latents + 1)},
        *[
            lambda i, k=k: {
                "condition": replace(
                    i["condition"], added_ids=i["condition"].added_ids.at[:, k].add(1)
                )
            }
            for k in range(3)
        ],
        lambda i: {
            "cameras": replace(i["cameras"], camera_to_world=i["cameras"].camera_to_world[:, ::-1])
        },
        lambda i: {"maps": replace(i["maps"], rgb=1 - i["maps"].rgb)},
        lambda i: {"maps": replace(i["maps"], ccm=1 - i["maps"].ccm)},
        lambda i: {"maps": Maps(rgb=i["maps"].ccm, ccm=i["maps"].rgb)},
    ],
    ids="x c_noise clip latents fps motion_bucket noise cameras rgb ccm rgb<->ccm".split(),
)
def test_every_input_reaches_the_output(change, run, inputs, output):
    assert difference(run(inputs | change(inputs))[0], output) > 100 * ROUNDING


def test_objects_do_not_see_each_other(run, inputs, output):
    def shake(x):
        return x + jnp.array([0.0, 0.1]).reshape(2, *(1,) * (x.ndim - 1)) * normal(8, *x.shape)

    shaken = run(jax.tree.map(shake, inputs))[0]
    np.testing.assert_allclose(shaken[0], output[0], rtol=0, atol=ROUNDING)
    assert difference(shaken[1], output[1]) > 100 * ROUNDING


def test_views_see_each_other_and_their_order(run, inputs, output):
    other = inputs["x"].at[:, 2].add(normal(9, B, H, W, C))
    seen = run(inputs | {"x": other})[0]
    assert difference(seen[:, 0], output[:, 0]) > 100 * ROUNDING
    order = np.array([2, 0, 1])
    views = {key: inputs[key] for key in ("x", "cameras", "maps")}
    permuted = run(inputs | jax.tree.map(lambda leaf: leaf[:, order], views))[0]
    assert difference(permuted, output[:, order]) > 100 * ROUNDING


def test_no_maps_add_nothing_but_zero_maps_do(run_with, inputs, variables):
    zeros = run_with(variables, inputs | {"maps": Maps.nothing(B, V, 2 * H, 2 * W)})[0]
    none = jit(MODEL.apply)(variables, **inputs | {"maps": None})
    assert difference(zeros, none) > 100 * ROUNDING
    silent = {
        name: jax.tree.map(jnp.zeros_like, params) if name.startswith("cond_encoder") else params
        for name, params in variables["params"].items()
    }
    nothing = run_with({"params": silent}, inputs)[0]
    np.testing.assert_allclose(none, nothing, rtol=0, atol=ROUNDING)


def test_rays_enter_before_each_block_and_the_skips_hold_them(run, inputs):
    _, calls = run(inputs)

    def ray(name):
        return calls[name][1]

    conv_in = calls["unet/conv_in"][1] + ray("down_plucker_0")
    entering = [conv_in]
    skips = [conv_in]
    for i in range(3):
        (x, *_), (x_out, block_skips) = calls[f"unet/down_blocks_{i}"]
        np.testing.assert_allclose(x, entering[i], rtol=0, atol=ROUNDING)
        x_out = x_out + ray(f"down_plucker_{i + 1}" if i < 2 else "mid_plucker")
        entering.append(x_out)
        # The last block's skip is its output, so that takes the middle block's rays.
        skips += [*block_skips, x_out] if i < 2 else [*block_skips[:-1], x_out]
    np.testing.assert_allclose(calls["unet/mid_block"][0][0], entering[3], rtol=0, atol=ROUNDING)
    used = [skip for i in (2, 1, 0) for skip in calls[f"unet/up_blocks_{i}"][0][3]]
    assert len(used) == len(skips) == 6
    for ours, expected in zip(used, skips, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=ROUNDING)
    for i in (1, 2):
        expected = calls[f"unet/up_blocks_{i - 1}"][1] + ray(f"up_plucker_{i}")
        np.testing.assert_allclose(
            calls[f"unet/up_blocks_{i}"][0][0], expected, rtol=0, atol=ROUNDING
        )


def test_eq14_feedback_of_both_maps_is_summed_and_enters_at_each_scale(run, inputs):
    _, calls = run(inputs)
    features = [
        a + b for a, b in zip(*(calls[f"cond_encoder_{i}"][1] for i in (0, 1)), strict=True)
    ]
    for i in range(2):
        np.testing.assert_allclose(
            calls[f"unet/down_blocks_{i}"][0][3], features[i], rtol=0, atol=ROUNDING
        )
    assert calls["unet/down_blocks_2"][0][3] is None
    expected = calls["unet/mid_block"][1] + features[2] + calls["up_plucker_0"][1]
    np.testing.assert_allclose(calls["unet/up_blocks_0"][0][0], expected, rtol=0, atol=ROUNDING)


def test_fourth_scale_may_enter_at_the_end_of_the_encoder(inputs, variables):
    model = MODEL.clone(config=replace(CONFIG, feedback_scale4="encoder"))
    wanted = r"mid_plucker|cond_encoder_.|unet/(down_blocks_2|mid_block|up_blocks_0)|up_plucker_0"
    _, calls = jit(lambda kwargs: record(model, variables, wanted=wanted, **kwargs))(inputs)
    last = calls["cond_encoder_0"][1][2] + calls["cond_encoder_1"][1][2]
    out, skips = calls["unet/down_blocks_2"][1]
    np.testing.assert_allclose(out, skips[-1] + last, rtol=0, atol=ROUNDING)
    rays = calls["mid_plucker"][1]
    np.testing.assert_allclose(calls["unet/mid_block"][0][0], out + rays, rtol=0, atol=ROUNDING)
    (x, _, _, used), _ = calls["unet/up_blocks_0"]
    np.testing.assert_allclose(used[-1], skips[-1] + rays, rtol=0, atol=ROUNDING)
    expected = calls["unet/mid_block"][1] + calls["up_plucker_0"][1]
    np.testing.assert_allclose(x, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("feedback", "expected"), [("none", []), ("ccm", ["ccm"]), ("rgb+ccm", ["rgb", "ccm"])]
)
def test_table2_each_row_feeds_back_its_maps(feedback, expected, inputs):
    model = MODEL.clone(config=replace(CONFIG, feedback=feedback))
    given = []

    def keep(call, args, kwargs, context):
        if context.method_name == "__call__" and (context.module.name or "").startswith(
            "cond_encoder"
        ):
            names = [name for name in ("rgb", "ccm") if args[0] is getattr(inputs["maps"], name)]
            given.append((context.module.name, *names))
        return call(*args, **kwargs)

    with nn.intercept_methods(keep):
        shapes = jax.eval_shape(lambda key: model.init(key, *inputs.values()), jax.random.key(0))
    assert given == [(f"cond_encoder_{i}", name) for i, name in enumerate(expected)]
    encoders = [name for name in shapes["params"] if name.startswith("cond_encoder")]
    assert len(encoders) == len(expected)


def test_parameters_of_feedback_need_maps(inputs):
    with pytest.raises(ValueError, match="Maps.nothing"):
        jax.eval_shape(MODEL.init, jax.random.key(0), *(inputs | {"maps": None}).values())


def test_normalization_epsilons_are_those_of_the_release(inputs):
    found = {}

    def keep(call, args, kwargs, context):
        if hasattr(context.module, "epsilon") and "unet" in context.module.path:
            found["/".join(context.module.path[1:])] = context.module.epsilon
        return call(*args, **kwargs)

    with nn.intercept_methods(keep):
        jax.eval_shape(MODEL.init, jax.random.key(0), *inputs.values())
    expected = [  # The release's construction calls, listed in its facts.
        (r"conv_norm_out", 1e-5),
        (r".*transformer_blocks_0/norm(_in|.)", 1e-5),
        (r".*attentions_./norm", 1e-6),
        (r"mid_block/resnets_.*", 1e-5),
        (r"down_blocks_2/resnets_.*", 1e-5),
        (r"(down_blocks_[01]|up_blocks_[012])/resnets_.*", 1e-6),
    ]
    matched = {path for pattern, _ in expected for path in found if re.fullmatch(pattern, path)}
    assert matched == set(found)
    for pattern, epsilon in expected:
        assert {found[p] for p in found if re.fullmatch(pattern, p)} == {epsilon}, pattern
