"""Evaluations of held-out objects part by part, by programs that are plain functions here."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from o3d_jax.nn.networks import build_networks
from o3d_jax.parallel.layout import make_layout
from o3d_jax.run.heldout import HeldOutFigures
from o3d_jax.run.programs import Evaluator
from o3d_jax.steps.train import Training
from o3d_jax.types import Frozen, Params, TrainState
from support.estimates import estimate
from support.toy_networks import random_batch

FROZEN = Frozen(vae="vae")


class Recorded:
    """An evaluation whose figures tell the objects apart, and what its programs were given."""

    def __init__(self, config, objects, devices, samples=True):
        self.batch = random_batch(config, objects)
        self.keys, self.sizes, self.sampled = [], [], []
        layout = make_layout(config.train, jax.devices()[:devices])
        self.evaluator = SimpleNamespace(
            figures=self.figures,
            sampler=self.sampler if samples else None,
            heldout=jax.tree.map(np.asarray, self.batch),
            training=Training(config, build_networks(config.model), optax.sgd(1.0), layout),
        )
        none = Params(unet=None, lgm=None)
        average = Params(unet="average", lgm=None)
        self.state = TrainState(step=jnp.array(4), params=none, ema=average, opt_state=None)

    def evaluate(self, **options):
        return Evaluator.evaluate(self.evaluator, self.state, FROZEN, **options)

    def figures(self, model, batch, key):
        assert (model.params.unet, model.frozen) == ("average", FROZEN)
        self.keys.append(jax.random.key_data(key).tolist())
        self.sizes.append(len(batch.images))
        seen = batch.images.mean(axis=(1, 2, 3, 4))
        losses = seen[:, None] * jnp.arange(6.0)[None]
        return HeldOutFigures(diffusion=losses, lgm=seen, vae=None, images=batch.images)

    def sampler(self, model, image, cameras, key):
        assert (model.params.unet, model.frozen) == ("average", FROZEN)
        self.sampled.append(jax.random.key_data(key).tolist())
        views = jnp.tile(image[:, None], (1, cameras.intrinsics.shape[1], 1, 1, 1))
        return estimate(views, views + 1)


@pytest.mark.parametrize(
    ("objects", "devices", "sizes"),
    [(1, 1, [1]), (4, 1, [4]), (11, 1, [4] * 3), (1, 2, [2]), (5, 2, [6]), (11, 2, [8, 8])],
)
def test_each_object_counts_once_in_its_place_however_many_go_at_a_time(
    tiny, objects, devices, sizes
):
    recorded = Recorded(tiny, objects, devices)
    found = recorded.evaluate()
    images = np.asarray(recorded.batch.images)
    expected = images.mean(axis=(1, 2, 3, 4))
    assert recorded.sizes == sizes  # Of equal size: compiled once.
    np.testing.assert_allclose(found.figures.lgm, expected, rtol=1e-5)
    np.testing.assert_allclose(found.figures.diffusion[:, 3], 3 * expected, rtol=1e-5)
    np.testing.assert_array_equal(found.figures.images, images)
    assert found.figures.vae is None
    np.testing.assert_array_equal(found.sampled.views[:, 1], images[:, 0])


def test_noise_is_another_in_each_part_and_the_same_at_each_evaluation(tiny):
    recorded = Recorded(tiny, 11, 1)
    for _ in range(2):
        recorded.evaluate()
    first, second = recorded.keys[:3], recorded.keys[3:]
    assert first == second == recorded.sampled[:3]
    assert len({tuple(key) for key in first}) == 3


def test_nothing_is_sampled_unless_asked_for_or_where_there_is_no_sampler(tiny):
    recorded = Recorded(tiny, 2, 1)
    assert recorded.evaluate(sample=False).sampled is None and recorded.sampled == []
    assert Recorded(tiny, 2, 1, samples=False).evaluate().sampled is None
