"""`compare` follows the torch originals module by module, and finds the one that is wrong."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from o3d_jax.config import ClipConfig, Config, LgmConfig, ModelConfig, UnetConfig, VaeConfig
from o3d_jax.nn.networks import build_networks, init_networks
from o3d_jax.types import Frozen, Params
from o3d_jax.weights.checkpoint import Model, Weights
from o3d_jax.weights.pytorch.compare import TOLERANCE, compare, comparison_lines, first_difference
from o3d_jax.weights.pytorch.dump import Dump
from o3d_jax.weights.pytorch.dump_script import dump
from o3d_jax.weights.pytorch.names import flax_path
from o3d_jax.weights.pytorch.replay import replay
from support.originals import GROUPS, load, svd_unet, svd_vae, tensor
from support.quick import normal
from support.synthetic import synthetic_variables

pytestmark = pytest.mark.parity
CONFIG = Config(
    name="small",
    model=ModelConfig(
        image_size=16,
        num_views=2,
        vae=VaeConfig((32, 64), latent_channels=3, norm_num_groups=GROUPS),
        unet=UnetConfig((32, 64), 1, (2, 4), 6, GROUPS),
        clip=ClipConfig(12, 20, 2, 3, 10, 4, 12),
        lgm=LgmConfig(8, 2, (8,), (False,), False, (8,), (False,), 1, 2, 4, 8),
    ),
)
NETWORKS = build_networks(CONFIG.model)
B, F, H, W = 2, 3, 6, 4


@pytest.fixture(scope="module")
def model():
    """Every weight filled from its name."""
    shapes = jax.eval_shape(
        lambda key: init_networks(NETWORKS, CONFIG.model, key, False), jax.random.key(0)
    )

    def filled(tree):
        class Shapes:
            init = staticmethod(lambda *_: tree)

        return synthetic_variables(Shapes)

    params, frozen = shapes
    return Model(
        config=CONFIG,
        weights=Weights(
            params=Params(unet=filled(params.unet), lgm=None),
            frozen=Frozen(vae=filled(frozen.vae), clip=filled(frozen.clip)),
        ),
    )


def torch_unet(model):
    unet = svd_unet(CONFIG.model.unet, latents=3, context=10, given=3)
    return load(unet, {"params": model.weights.params.unet["params"]["unet"]})


def dump_unet(model, folder, unet=None, **options):
    unet = torch_unet(model) if unet is None else unet
    x, ids = tensor(normal(0, B, F, 6, H, W)), tensor([[6, 127, 0.02]] * B)
    clip, c_noise = tensor(normal(1, B, 1, 10)), tensor(normal(2, B))
    dump(
        unet,
        lambda: unet(x, c_noise, clip, ids),
        folder,
        network="svd_unet",
        sample=x,
        timestep=c_noise,
        encoder_hidden_states=clip,
        added_time_ids=ids,
        **options,
    )


def torch_vae(model):
    return load(svd_vae(CONFIG.model.vae), model.weights.frozen.vae)


def dump_vae_encoder(model, folder, **options):
    vae, images = torch_vae(model), tensor(normal(3, B, 3, H, W))
    dump(vae, lambda: vae.encode(images), folder, network="vae_encoder", images=images, **options)


def dump_vae_decoder(model, folder, **options):
    vae, latents = torch_vae(model), tensor(normal(4, B, F, 3, H, W))
    dump(
        vae,
        lambda: vae.decode(latents.flatten(0, 1), num_frames=F),
        folder,
        network="vae_decoder",
        latents=latents,
        **options,
    )


def dump_clip(model, folder, **options):
    sizes = dataclasses.asdict(CONFIG.model.clip)
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, hidden_act="gelu"))
    load(clip, model.weights.frozen.clip)
    pixels = tensor(normal(5, B, 3, 12, 12))
    dump(
        clip, lambda: clip(pixels), folder, network="image_encoder", pixel_values=pixels, **options
    )


def perturbed(model, part: str, name: str):
    """The model with one weight of one kernel moved."""
    weights = model.weights
    side = weights.params if part == "unet" else weights.frozen
    path = flax_path(name, 4)

    def move(keys, leaf):
        here = tuple(key.key for key in keys)
        return leaf.at[(0,) * leaf.ndim].add(1.0) if here == ("params", *path) else leaf

    moved = jax.tree_util.tree_map_with_path(move, getattr(side, part))
    side = dataclasses.replace(side, **{part: moved})
    name = "params" if part == "unet" else "frozen"
    return dataclasses.replace(model, weights=dataclasses.replace(weights, **{name: side}))


CASES = {
    "unet": (
        dump_unet,
        "unet",
        "unet.up_blocks.1.attentions.0.temporal_transformer_blocks.0.attn1.to_k.weight",
    ),
    "vae_encoder": (dump_vae_encoder, "vae", "encoder.mid_block.attentions.0.to_q.weight"),
    "vae_decoder": (
        dump_vae_decoder,
        "vae",
        "decoder.up_blocks.0.resnets.1.temporal_res_block.conv2.weight",
    ),
    "clip": (dump_clip, "clip", "vision_model.encoder.layers.1.mlp.fc1.weight"),
}


@pytest.mark.parametrize("case", CASES)
def test_same_weights_agree_everywhere_and_a_moved_one_is_found(case, model, tmp_path):
    write, part, name = CASES[case]
    write(model, tmp_path / "dump", limit=301)  # So that most outputs are thinned.
    found = Dump(tmp_path / "dump")
    same = compare(replay(model, found), found)
    # Twice as many rows as there are layers, in float32 both.
    assert first_difference(same, 1e-5) is None, list(comparison_lines(same, 1e-5))
    assert len(same.rows) > 30
    assert all(row.largest > 0 or row.relative == 0 for row in same.rows)
    other = compare(replay(perturbed(model, part, name), found), found)
    first = first_difference(other, TOLERANCE)
    assert first is not None
    expected = name.removesuffix(".weight").removeprefix("unet.")
    assert other.rows[first].record.name == expected
    assert np.all([row.relative < 1e-5 for row in other.rows[:first]])


UP = "up_blocks.1.attentions.0.temporal_transformer_blocks.0"


def test_a_reshape_that_mixes_frames_and_places_is_found(model, tmp_path):
    dump_unet(model, tmp_path / "dump")
    found = Dump(tmp_path / "dump")

    def mix(call, args, kwargs, context):
        if ".".join(context.module.path) != UP.replace(".0", "_0").replace(".1.", "_1.") + ".attn1":
            return call(*args, **kwargs)
        x = args[0]  # (b s) v d: what comes of (b v s d) that was reshaped and not transposed.
        moved = x.reshape(B, -1, F, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)
        y = call(moved, **kwargs).reshape(B, F, -1, x.shape[-1])
        return y.swapaxes(1, 2).reshape(x.shape)

    with nn.intercept_methods(mix):
        comparison = compare(replay(model, found), found)
    first = first_difference(comparison, TOLERANCE)
    assert first is not None
    assert comparison.rows[first].record.name == f"{UP}.attn1.to_q"


def with_contexts_of_025(unet):
    """diffusers' network, with its temporal contexts ordered (place, video) as in 0.25."""

    def reorder(module, args, kwargs):
        contexts = kwargs["encoder_hidden_states"]
        places = contexts.unflatten(0, (B, -1))
        return args, kwargs | {"encoder_hidden_states": places.transpose(0, 1).flatten(0, 1)}

    for name, module in unet.named_modules():
        if name.split(".")[-2:-1] == ["temporal_transformer_blocks"]:
            module.register_forward_pre_hook(reorder, with_kwargs=True)
    return unet


def test_contexts_of_diffusers_025_are_told_from_ours_per_video(model, tmp_path):
    dump_unet(model, tmp_path / "dump", with_contexts_of_025(torch_unet(model)))
    found = Dump(tmp_path / "dump")
    comparison = compare(replay(model, found), found)
    first = first_difference(comparison, TOLERANCE)
    assert first is not None
    row = comparison.rows[first]
    at = "down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn2.to_v"
    assert (row.record.name, row.agrees_as) == (at, "pbfc")
    unet = dataclasses.replace(CONFIG.model.unet, temporal_context="interleaved")
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, unet=unet))
    same = compare(replay(dataclasses.replace(model, config=config), found), found)
    assert first_difference(same, 1e-5) is None, list(comparison_lines(same, 1e-5))
