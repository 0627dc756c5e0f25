"""LPIPS is a distance, and the one its definition says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.nn.lpips import TRUNKS, Lpips, max_pool2, unit
from support.synthetic import synthetic_variables

COLORS = np.array([0.5, 1.0, 1.5])


@pytest.fixture(scope="module", params=["vgg", "alex"])
def model(request):
    return Lpips(network=request.param)


@pytest.fixture(scope="module")
def apply(model):
    return jax.jit(model.apply)


@pytest.fixture(scope="module")
def images(model):
    size = {"vgg": (16, 32), "alex": (35, 44)}[model.network]
    a, b = jax.random.uniform(jax.random.key(0), (2, 1, 2, *size, 3))
    return a, b


@pytest.fixture(scope="module")
def variables(model, images):
    params = synthetic_variables(model, *images)["params"]
    lins = {name: jax.tree.map(jnp.abs, p) for name, p in params.items() if name[:3] == "lin"}
    return {"params": params | lins}  # The published channel weights are not negative.


def relay(shapes, network):
    """Weights that hand a sum of colors down, with a 1 beside it in front of each comparison."""
    params = jax.tree.map(np.zeros_like, shapes["params"])
    for i, stage in enumerate(TRUNKS[network]):
        for c in stage.convolutions:
            params[c.name]["kernel"][c.size // 2, c.size // 2, 0, 0] = 1  # Center tap.
        params[stage.convolutions[-1].name]["bias"][1] = 1
        params[f"lin{i}"]["kernel"][0, 0, :2, 0] = (2 + i, 1 + i)
    first = TRUNKS[network][0].convolutions[0]
    params[first.name]["kernel"][first.size // 2, first.size // 2, :3, 0] = COLORS
    return {"params": jax.tree.map(jnp.asarray, params)}


def vgg_features(x):
    """What each of the five layers sees of it if convolutions do nothing."""
    h, w = x.shape
    for block in (1, 2, 4, 8, 16):
        yield x.reshape(h // block, block, w // block, block).max(axis=(1, 3))


def alex_features(x):
    """The same; windows of 11 behind a border of 2 have their centers at 3, 7, 11 ..."""
    h, w = x.shape
    x = x[3 : h - 3 : 4, 3 : w - 3 : 4]
    yield x
    for _ in range(2):
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3))
        x = windows[::2, ::2].max(axis=(2, 3))
        yield x
    yield x
    yield x


def test_distance_is_that_of_the_definition_where_features_are_known(
    model, apply, images, variables
):
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])  # LPIPS's.
    layers = {"vgg": vgg_features, "alex": alex_features}[model.network]
    features = []
    for image in images:
        x = ((2 * np.asarray(image[0, 0], np.float64) - 1 - shift) / scale) @ COLORS
        seen = [np.stack([np.maximum(y, 0), np.ones_like(y)]) for y in layers(x)]
        features.append([y / np.linalg.norm(y, axis=0) for y in seen])
    expected = 0
    for i, (a, b) in enumerate(zip(*features, strict=True)):
        squared = ((a - b) ** 2).mean(axis=(1, 2))
        expected += (2 + i) * squared[0] + (1 + i) * squared[1]
    # float32 against float64, distances of about 1.
    found = apply(relay(variables, model.network), *images)[0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    # As published: the convolutions of both classifiers, and a weight for each channel compared.
    ("network", "parameters"),
    [("vgg", 14_714_688 + 1_472), ("alex", 2_469_696 + 1_152)],
)
def test_networks_have_the_published_number_of_parameters(network, parameters):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(Lpips(network=network).init, jax.random.key(0), image, image)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


@pytest.mark.parametrize(("network", "smallest"), [("vgg", 16), ("alex", 31)])
def test_images_of_which_no_pixel_reaches_the_last_layer_are_refused(network, smallest):
    model = Lpips(network=network)

    def distance(h, w):
        image = jax.ShapeDtypeStruct((1, h, w, 3), jnp.float32)
        return jax.eval_shape(model.init_with_output, jax.random.key(0), image, image)[0]

    assert distance(smallest, smallest).shape == (1,)
    for h, w in ((smallest - 1, 64), (64, smallest - 1)):
        with pytest.raises(ValueError, match=f"{h} x {w} px .* needs {smallest}"):
            distance(h, w)


def test_distance_is_zero_to_itself_positive_to_others_and_symmetric(apply, images, variables):
    a, b = images
    # A convolution may round equal images of one batch differently: (1e-7)^2 times the weights.
    assert float(apply(variables, a, a).max()) < 1e-12
    forth, back = apply(variables, a, b), apply(variables, b, a)
    assert forth.shape == (1, 2)
    assert float(forth.min()) > 1e-3
    np.testing.assert_allclose(forth, back, rtol=1e-5)  # Only the order of the pair differs.


def test_each_pair_has_its_own_distance(apply, images, variables):
    a, b = images
    mixed = apply(variables, a, jnp.concatenate([a[:, :1], b[:, 1:]], axis=1))
    assert mixed[0, 0] < 1e-12  # As above.
    # The other pair is as before; its batch neighbors may change the order of sums.
    np.testing.assert_allclose(mixed[0, 1], apply(variables, a, b)[0, 1], rtol=1e-5)


def test_gradient_is_finite_even_where_all_features_are_zero(model, images, variables):
    a, b = images
    dead = jax.tree.map(lambda x: x if x.ndim > 1 else x - 100, variables)  # Every ReLU is off.
    gradient = jax.jit(jax.grad(lambda w, x: model.apply(w, x, b).sum(), argnums=1))
    assert jnp.all(gradient(dead, a) == 0)
    alive = gradient(variables, a)
    assert jnp.all(jnp.isfinite(alive))
    assert float(jnp.abs(alive).max()) > 0
    # ReLU would hide a gradient of 0/0 there; `unit` has none to hide.
    assert jnp.all(jnp.isfinite(jax.grad(lambda x: unit(x).sum())(jnp.zeros((2, 3)))))


def test_max_pool_drops_an_odd_last_row_and_column_as_vgg_does():
    x = jnp.arange(15.0).reshape(1, 3, 5, 1)
    assert max_pool2(x)[0, :, :, 0].tolist() == [[6.0, 8.0]]
