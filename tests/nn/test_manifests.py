"""Our parameters and the torch originals' are the same, by name and shape, at full size."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from o3d_jax.config import ClipConfig, LgmConfig, ModelConfig, UnetConfig, VaeConfig
from o3d_jax.nn.networks import build_networks, init_networks
from o3d_jax.weights.pytorch.names import flax_path, from_torch, manifest, to_torch, torch_name

MANIFESTS = Path(__file__).parents[1] / "manifests"
TOTALS = {
    "svd_unet": 1_524_623_082,
    "mv_model_unet": 1_765_033_322,
    "recon_model": 424_039_200,
    "svd_vae": 97_742_847,
    "svd_image_encoder": 632_076_800,
}
TINY = ModelConfig(
    image_size=16,
    num_views=4,
    dtype="float32",
    remat=False,
    vae=VaeConfig(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4),
    unet=UnetConfig(
        block_out_channels=(8, 16),
        layers_per_block=1,
        num_attention_heads=(2, 2),
        addition_time_embed_dim=8,
        norm_num_groups=4,
    ),
    clip=ClipConfig(16, 32, 1, 2, 12, 4, 8),
    lgm=LgmConfig(8, 2, (8,), (False,), False, (8,), (False,), 1, 2, 4, 8),
)


def original(name):
    shapes = json.loads((MANIFESTS / f"{name}.json").read_text())
    return {key: tuple(shape) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def ours():
    model = ModelConfig()
    networks = build_networks(model)
    params, frozen = jax.eval_shape(
        lambda key: init_networks(networks, model, key, train_image_encoder=True),
        jax.random.key(0),
    )
    unet = manifest(params.unet["params"])
    return {
        "svd_unet": {k[5:]: s for k, s in unet.items() if k.startswith("unet.")},
        "mv_model_unet": unet,
        "recon_model": manifest(params.lgm["params"]),
        "svd_vae": manifest(frozen.vae["params"]),
        "svd_image_encoder": manifest(params.clip["params"]),
    }


@pytest.mark.parametrize("name", TOTALS)
def test_parameters_are_the_originals_by_name_shape_and_number(ours, name):
    assert ours[name] == original(name)
    assert sum(map(math.prod, ours[name].values())) == TOTALS[name]


@pytest.mark.parametrize("name", TOTALS)
def test_every_original_name_survives_the_way_to_a_path_and_back(name):
    shapes = original(name)
    paths = {key: flax_path(key, len(shape)) for key, shape in shapes.items()}
    assert {key: torch_name(path) for key, path in paths.items()} == {key: key for key in shapes}
    assert len(set(paths.values())) == len(shapes)  # No two names share a path.


@pytest.mark.parametrize(
    ("name", "ndim", "path"),
    [
        ("a.0.b.10.conv1.weight", 4, ("a_0", "b_10", "conv1", "kernel")),
        ("time_embedding.linear_1.weight", 2, ("time_embedding", "linear_1", "kernel")),
        ("net.0.proj.bias", 1, ("net_0", "proj", "bias")),
        ("norm.weight", 1, ("norm", "scale")),
        ("e.position_embedding.weight", 2, ("e", "position_embedding", "embedding")),
        ("time_mixer.mix_factor", 1, ("time_mixer", "mix_factor")),
    ],
)
def test_name_rule_by_example(name, ndim, path):
    assert flax_path(name, ndim) == path
    assert torch_name(path) == name


@pytest.mark.parametrize(
    ("name", "torch_shape", "flax_shape"),
    [
        ("conv.weight", (5, 4, 3, 2), (3, 2, 4, 5)),
        ("conv.weight", (5, 4, 3, 1, 2), (3, 1, 2, 4, 5)),
        ("linear.weight", (5, 4), (4, 5)),
        ("position_embedding.weight", (5, 4), (5, 4)),
        ("norm.weight", (5,), (5,)),
    ],
)
def test_arrays_swap_channels_and_keep_the_order_of_space(name, torch_shape, flax_shape):
    array = np.arange(math.prod(torch_shape), dtype=np.float32).reshape(torch_shape)
    path, mine = flax_path(name, array.ndim), from_torch(name, array)
    assert mine.shape == flax_shape
    np.testing.assert_array_equal(to_torch(path, mine), array)
    if path[-1] == "kernel":  # Entry by entry: out, in, *space against *space, in, out.
        for out, in_, *space in np.ndindex(*torch_shape):
            assert mine[(*space, in_, out)] == array[(out, in_, *space)]


def test_two_parameters_with_one_torch_name_are_an_error():
    with pytest.raises(ValueError, match=r"norm\.weight"):
        manifest({"norm": {"scale": np.zeros(2), "kernel": np.zeros(2)}})


@pytest.mark.parametrize("trains", [True, False])
def test_image_tower_is_either_trainable_or_frozen(trains):
    networks = build_networks(TINY)
    params, frozen = jax.eval_shape(
        lambda key: init_networks(networks, TINY, key, trains), jax.random.key(0)
    )
    assert (params.clip is not None, frozen.clip is not None) == (trains, not trains)
    assert frozen.lpips is None


def test_networks_of_equal_configurations_are_one_static_argument_of_jit():
    first, second = (build_networks(TINY, lpips="vgg") for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first != build_networks(TINY)


@pytest.mark.slow  # Compiles one draw per shape.
def test_networks_start_from_independent_float32_parameters():
    networks = build_networks(TINY)
    params, frozen = init_networks(networks, TINY, jax.random.key(0), True)
    other, _ = init_networks(networks, TINY, jax.random.key(1), True)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves((params, frozen)))
    kernels = [p.unet["params"]["unet"]["conv_in"]["kernel"] for p in (params, other)]
    assert not np.allclose(*kernels)
    same = [params.unet["params"][f"cond_encoder_{i}"]["conv_in"]["kernel"] for i in range(2)]
    assert not np.allclose(*same)  # Two encoders, two draws.
