"""Parameters as sampling keeps them: in fewer bits, and yet nothing computed from them changes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.extend.core import Var

from o3d_jax.nn.networks import build_networks, init_networks
from o3d_jax.run.flops import programs_within
from o3d_jax.types import Condition, Maps
from o3d_jax.weights.storage import kept_dtype
from support.toy_networks import random_batch


@pytest.mark.parametrize(
    ("place", "ndim", "stored", "computed", "kept"),
    [
        ("unet/params/unet/conv_in/kernel", 4, "float32", "bfloat16", "bfloat16"),
        ("unet/params/unet/conv_out/kernel", 4, "float32", "bfloat16", "float32"),
        ("lgm/params/conv/kernel", 4, "float32", "bfloat16", "float32"),
        ("frozen_vae/params/decoder/conv_out/kernel", 4, "float32", "bfloat16", "bfloat16"),
        ("clip/params/norm/scale", 1, "float16", "bfloat16", "float32"),
        # Stored in as many bits as it is used in, but otherwise; and in fewer, of any layer.
        ("lgm/params/unet/conv_in/kernel", 4, "float16", "bfloat16", "bfloat16"),
        ("lgm/params/conv/kernel", 4, "float16", "bfloat16", "float16"),
        ("unet/params/unet/conv_in/kernel", 4, "bfloat16", "float32", "bfloat16"),
    ],
)
def test_parameters_are_kept_in_the_bits_that_they_are_used_or_stored_in(
    place, ndim, stored, computed, kept
):
    found = kept_dtype(tuple(place.split("/")), (3,) * ndim, jnp.dtype(stored), computed)
    assert found == jnp.dtype(kept)


SAME_NUMBERS = {"reshape", "squeeze", "slice", "transpose", "broadcast_in_dim", "rev"}


def read_as(program, places):
    """Yields which numbers of a program's inputs are read in what type, at first.

    `places` are the inputs' variables, or what only arranges their numbers anew, with their names.
    """
    for equation in program.eqns:
        given = [places.get(v) if isinstance(v, Var) else None for v in equation.invars]
        if not any(given):
            continue
        inside = list(programs_within(equation.params))
        if equation.primitive.name == "convert_element_type":
            yield given[0], equation.params["new_dtype"].name
        elif equation.primitive.name in SAME_NUMBERS:
            places[equation.outvars[0]] = given[0]
        elif inside:
            for each in inside:
                assert len(each.invars) == len(given), equation.primitive
                named = zip(each.invars, given, strict=True)
                yield from read_as(each, {v: name for v, name in named if name})
        else:
            yield from ((name, "float32") for name in given if name)


def outputs(networks, parts, batch):
    """What all networks make of some inputs."""
    images, cameras = batch.images[:1], jax.tree.map(lambda a: a[:1], batch.cameras)
    c_noise, x = jnp.full(1, 0.3), jnp.zeros((1, 4, 8, 8, 4))
    embedding = networks.clip.apply(parts["frozen_clip"], images[:, 0])
    moments = networks.vae.apply(parts["frozen_vae"], images, method="encode")
    condition = Condition(clip=embedding, latents=moments.mean[:, 0], added_ids=jnp.ones((1, 3)))
    maps = Maps(rgb=images, ccm=images)
    raw = networks.unet.apply(parts["unet"], x, c_noise, condition, cameras, maps)
    views = networks.vae.apply(parts["frozen_vae"], raw, method="decode")
    return raw, views, networks.lgm.apply(parts["lgm"], views, cameras, c_noise)


def test_networks_read_every_parameter_in_the_type_that_it_is_kept_in(tiny):
    """So it makes no difference whether they or the checkpoint's reader round it."""
    model = dataclasses.replace(tiny.model, dtype="bfloat16")
    networks = build_networks(model)
    params, frozen = jax.eval_shape(
        lambda key: init_networks(networks, model, key, False), jax.random.key(0)
    )
    parts = {"unet": params.unet, "lgm": params.lgm}
    parts |= {"frozen_vae": frozen.vae, "frozen_clip": frozen.clip}
    flat = flatten_dict(parts)

    run = functools.partial(outputs, networks, batch=random_batch(tiny, 1))
    traced = jax.make_jaxpr(lambda flat: run(unflatten_dict(flat)))(flat).jaxpr
    found = dict.fromkeys(flat, frozenset())
    for keys, dtype in read_as(traced, dict(zip(traced.invars, sorted(flat), strict=True))):
        found[keys] |= {dtype}

    kept = {keys: kept_dtype(keys, a.shape, a.dtype, "bfloat16").name for keys, a in flat.items()}
    matrices = {keys for keys, a in flat.items() if a.ndim > 1}
    # Kernels that no level uses, as those of the queries of a single token, are read as nothing.
    assert {k: found[k] for k in matrices if found[k]} == {
        k: {kept[k]} for k in matrices if found[k]
    }
    assert sum(bool(found[k]) for k in matrices) > 0.8 * len(matrices)
    assert {kept[k] for k in flat.keys() - matrices} == {"float32"}
