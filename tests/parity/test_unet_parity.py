"""The U-Net without rays and feedback is diffusers', for any configuration it can have."""

import jax
import numpy as np
import pytest
from originals import GRADIENT, GROUPS, evaluate, gradients, load, svd_unet
from quick import jit, normal
from synthetic import synthetic_variables

from o3d_jax.config import UnetConfig
from o3d_jax.nn.unet import SpatioTemporalUnet

pytestmark = pytest.mark.parity


class Drawn:
    """A configuration, both networks with the same weights, and inputs."""

    def __init__(self, seed: int, scales: int, layers: int):
        rng = np.random.default_rng(seed)
        heads = tuple(int(n) for n in rng.choice([1, 2, 4, 8], scales))
        widths = tuple(GROUPS * int(n) for n in rng.choice([1, 2, 3], scales))
        config = UnetConfig(widths, layers, heads, 2 * int(rng.integers(2, 9)), GROUPS)
        latents, context = (int(n) for n in rng.integers(3, 8, 2))
        self.ours = SpatioTemporalUnet(config, latents, context)
        b, v = int(rng.integers(2, 4)), int(rng.integers(2, 5))
        h, w = (int(n) * 2 ** (scales - 1) for n in rng.permutation([1, 2, 3])[:2])
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


@pytest.mark.parametrize(("seed", "scales", "layers"), [(0, 2, 2), (2, 3, 1)])
def test_unet_is_diffusers(seed, scales, layers):
    drawn = Drawn(seed, scales, layers)
    ours = jit(drawn.ours.apply)(drawn.variables, *drawn.inputs)
    evaluate(drawn.torch, forward, *drawn.torch_inputs).check(ours)


def test_gradient_of_every_parameter_is_diffusers():
    drawn = Drawn(seed=4, scales=2, layers=1)
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
