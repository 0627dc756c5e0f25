"""The U-Net without rays and feedback is diffusers', for configurations drawn at random."""

import jax
import numpy as np
import pytest

from o3d_jax.config import UnetConfig
from o3d_jax.nn.unet import SpatioTemporalUnet
from support.originals import GRADIENT, GROUPS, evaluate, gradients, load, svd_unet
from support.quick import jit, normal
from support.synthetic import synthetic_variables

pytestmark = pytest.mark.parity
SEEDS = (0, 1, 2)


class Drawn:
    """A configuration, both networks with the same weights, and inputs.

    All is drawn, within bounds that compile in seconds: two or three scales of one or two layers,
    whose widths, heads and sides differ, as do all other sizes that a swap of axes could hide.
    """

    def __init__(self, seed: int, most_layers: int = 2):
        rng = np.random.default_rng(seed)
        scales, layers = (int(n) for n in rng.integers((2, 1), (4, 3)))
        layers = 1 if scales == 3 else min(layers, most_layers)
        heads = tuple(int(n) for n in rng.choice([1, 2, 4, 8], scales, replace=False))
        widths = tuple(GROUPS * int(n) for n in rng.choice([1, 2, 3], scales, replace=False))
        config = UnetConfig(widths, layers, heads, 2 * int(rng.integers(2, 9)), GROUPS)
        latents, context = (int(n) for n in rng.choice(np.arange(3, 8), 2, replace=False))
        self.ours = SpatioTemporalUnet(config, latents, context)
        b, v = (int(n) for n in rng.choice([2, 3, 4], 2, replace=False))
        h, w = (int(n) * 2 ** (scales - 1) for n in rng.choice([1, 2, 3], 2, replace=False))
        self.inputs = (
            normal(seed, b, v, h, w, latents + 2),
            normal(seed + 1, b),
            normal(seed + 2, b, 1, context),
            jax.numpy.asarray(rng.uniform(0, (9, 130, 0.1), (b, 3)), jax.numpy.float32),
        )
        self.variables = synthetic_variables(self.ours, *self.inputs, seed=seed)
        self.torch = load(svd_unet(config, latents, context), self.variables)
        x, *rest = (np.asarray(a) for a in self.inputs)
        self.torch_inputs = (np.moveaxis(x, -1, 2), *rest)


def forward(unet, x, c_noise, clip, ids):
    return unet(x, c_noise, clip, ids, return_dict=False)[0].movedim(2, -1)


@pytest.mark.parametrize("seed", SEEDS)
def test_unet_is_diffusers(seed):
    drawn = Drawn(seed)
    ours = jit(drawn.ours.apply)(drawn.variables, *drawn.inputs)
    evaluate(drawn.torch, forward, *drawn.torch_inputs).check(ours)


def test_gradient_of_every_parameter_is_diffusers():
    drawn = Drawn(seed=SEEDS[1], most_layers=1)
    weights = normal(9, *drawn.inputs[0].shape[:-1], drawn.ours.out_channels)

    def functional(variables):
        return (weights * drawn.ours.apply(variables, *drawn.inputs)).sum()

    ours = jit(jax.grad(functional))(drawn.variables)["params"]
    expected = gradients(drawn.torch, forward, weights, *drawn.torch_inputs)
    paths = jax.tree_util.tree_flatten_with_path(ours)[0]
    assert len(paths) == len(expected)
    for keys, leaf in paths:
        path = tuple(key.key for key in keys)
        expected[path].check(leaf, GRADIENT, "/".join(path))
