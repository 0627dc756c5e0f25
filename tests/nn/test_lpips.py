"""LPIPS is a distance, and the one its definition says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from synthetic import synthetic_variables

from o3d_jax.nn.lpips import VGG16, Lpips, max_pool2, unit

MODEL = Lpips()
apply = jax.jit(MODEL.apply)


@pytest.fixture(scope="module")
def images():
    a, b = jax.random.uniform(jax.random.key(0), (2, 1, 2, 16, 32, 3))
    return a, b


@pytest.fixture(scope="module")
def variables(images):
    params = synthetic_variables(MODEL, *images)["params"]
    lins = {name: jax.tree.map(jnp.abs, p) for name, p in params.items() if name[:3] == "lin"}
    return {"params": params | lins}  # The published channel weights are not negative.


COLORS = np.array([0.5, 1.0, 1.5])


def relay(shapes):
    """Weights that hand a sum of colors down, with a 1 beside it in front of each comparison."""
    params = jax.tree.map(np.zeros_like, shapes["params"])
    for stage, (_, convolutions) in enumerate(VGG16):
        for i in range(convolutions):
            params[f"conv{stage + 1}_{i + 1}"]["kernel"][1, 1, 0, 0] = 1  # Centre tap.
        params[f"conv{stage + 1}_{convolutions}"]["bias"][1] = 1
        params[f"lin{stage}"]["kernel"][0, 0, :2, 0] = (2 + stage, 1 + stage)
    params["conv1_1"]["kernel"][1, 1, :3, 0] = COLORS
    return {"params": jax.tree.map(jnp.asarray, params)}


def test_distance_is_that_of_the_definition_where_features_are_known(images, variables):
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])  # LPIPS's.
    expected = 0
    for stage in range(5):
        features = []
        for image in images:
            x = ((2 * np.asarray(image[0, 0], np.float64) - 1 - shift) / scale) @ COLORS
            block = 2**stage
            x = x.reshape(16 // block, block, 32 // block, block).max(axis=(1, 3))
            x = np.stack([np.maximum(x, 0), np.ones_like(x)])
            features.append(x / np.linalg.norm(x, axis=0))
        squared = ((features[0] - features[1]) ** 2).mean(axis=(1, 2))
        expected += (2 + stage) * squared[0] + (1 + stage) * squared[1]
    # float32 against float64, distances of about 1.
    np.testing.assert_allclose(apply(relay(variables), *images)[0, 0], expected, rtol=1e-5)


def test_distance_is_zero_to_itself_positive_to_others_and_symmetric(images, variables):
    a, b = images
    # A convolution may round equal images of one batch differently: (1e-7)^2 times the weights.
    assert float(apply(variables, a, a).max()) < 1e-12
    forth, back = apply(variables, a, b), apply(variables, b, a)
    assert forth.shape == (1, 2)
    assert float(forth.min()) > 1e-3
    np.testing.assert_allclose(forth, back, rtol=1e-5)  # Only the order of the pair differs.


def test_each_pair_has_its_own_distance(images, variables):
    a, b = images
    mixed = apply(variables, a, jnp.concatenate([a[:, :1], b[:, 1:]], axis=1))
    assert mixed[0, 0] < 1e-12  # As above.
    # The other pair is as before; its batch neighbours may change the order of sums.
    np.testing.assert_allclose(mixed[0, 1], apply(variables, a, b)[0, 1], rtol=1e-5)


def test_gradient_is_finite_even_where_all_features_are_zero(images, variables):
    a, b = images
    dead = jax.tree.map(lambda x: x if x.ndim > 1 else x - 100, variables)  # Every ReLU is off.
    gradient = jax.jit(jax.grad(lambda w, x: MODEL.apply(w, x, b).sum(), argnums=1))
    assert jnp.all(gradient(dead, a) == 0)
    alive = gradient(variables, a)
    assert jnp.all(jnp.isfinite(alive))
    assert float(jnp.abs(alive).max()) > 0
    # ReLU would hide a gradient of 0/0 there; `unit` has none to hide.
    assert jnp.all(jnp.isfinite(jax.grad(lambda x: unit(x).sum())(jnp.zeros((2, 3)))))


def test_max_pool_drops_an_odd_last_row_and_column_as_vgg_does():
    x = jnp.arange(15.0).reshape(1, 3, 5, 1)
    assert max_pool2(x)[0, :, :, 0].tolist() == [[6.0, 8.0]]
