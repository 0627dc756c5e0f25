"""Muon in AdamW's place, `optim.optimizer`: its update by hand, on many devices, and kept."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.config import OptimConfig
from o3d_jax.parallel.layout import make_layout
from o3d_jax.parallel.shards import gather, place
from o3d_jax.run.checkpoints import RunCheckpoints
from o3d_jax.steps.train import (
    Training,
    init_state,
    kernel_matrices,
    make_optimizer,
    train_step_update,
)
from o3d_jax.types import Frozen, Params

pytestmark = pytest.mark.usefixtures("quick_compilation")

OPTIM = OptimConfig(optimizer="muon", learning_rate=3e-3, clip_norm=1e9, ema_decay=0.9)


def arrays(seed):
    """A convolution over pixels, one over frames, a dense layer, and what is no kernel."""
    draw = np.random.default_rng(seed).normal

    def layer(*shape):
        return {"kernel": jnp.asarray(draw(size=shape), jnp.float32), "bias": draw_bias(shape[-1])}

    def draw_bias(count):
        return jnp.asarray(draw(size=count), jnp.float32)

    return {
        "conv": layer(3, 3, 16, 24),
        "frames": layer(3, 1, 1, 24, 16),
        "dense": layer(40, 16),
        "conv_in": layer(3, 3, 3, 16),
        "conv_out": layer(3, 3, 16, 4),
        "table": {"embedding": jnp.asarray(draw(size=(9, 16)), jnp.float32)},
    }


@pytest.fixture(scope="module")
def stepped():
    """Parameters, the gradient, and the first update."""
    optimizer, params, gradient = make_optimizer(OPTIM, 10), arrays(0), arrays(1)
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    return params, gradient, updates


@pytest.fixture(scope="module")
def stepped_twice():
    """Parameters, the direction by hand, and the update after a second gradient."""
    optimizer, params, first, second = make_optimizer(OPTIM, 10), arrays(0), arrays(1), arrays(2)
    update = jax.jit(optimizer.update)
    _, state = update(first, optimizer.init(params), params)
    updates, _ = update(second, state, params)

    def direction(a, b):
        """Jordan's momentum, 0.95, and Nesterov's: the mean as it will be at the next step."""
        mean = 0.95 * 0.05 * a + 0.05 * b
        return 0.95 * mean / (1 - 0.95**3) + 0.05 * b / (1 - 0.95**2)

    return params, jax.tree.map(direction, first, second), updates


@pytest.mark.parametrize("name", ["conv", "frames", "dense"])
def test_a_kernels_update_is_near_an_orthogonal_matrix_of_in_x_out(stepped, name):
    check_orthogonal(*(tree[name]["kernel"] for tree in stepped))


def test_its_direction_is_that_of_a_running_mean(stepped_twice):
    check_orthogonal(*(tree["conv"]["kernel"] for tree in stepped_twice))


def check_orthogonal(params, gradient, updates):
    matrices = (np.reshape(a, (-1, *a.shape[-2:])) for a in (params, gradient, updates))
    for p, g, update in zip(*matrices, strict=True):
        # Liu et al. (2025), Eq. 4: 0.2 sqrt(max(in, out)), and decay as AdamW has it.
        made = -(update / 3e-3 + 0.01 * p) / (0.2 * np.sqrt(max(p.shape)))
        u, _, v = np.linalg.svd(g, full_matrices=False)
        found = u.T @ made @ v.T

        # Jordan's five steps bring singular values to about 1: for all of 0.05 to 1 that they may
        # have here, of norm 1 together, to 0.68 .. 1.14. What is off the diagonal is rounding.
        assert np.all((np.diag(found) > 0.65) & (np.diag(found) < 1.2))
        np.testing.assert_allclose(found - np.diag(np.diag(found)), 0, atol=1e-3)
        np.testing.assert_allclose(u @ found @ v, made, atol=1e-3)  # Nothing beside it.


def test_all_else_is_left_to_adamw_of_nesterovs_momentum(stepped):
    params, gradient, updates = stepped
    assert jax.tree.leaves(kernel_matrices(params)["conv_out"]) == []
    assert jax.tree.leaves(kernel_matrices(params)["conv_in"]) == []
    others = [("conv", "bias"), ("table", "embedding")]
    for name, kind in [*others, ("conv_in", "kernel"), ("conv_out", "kernel")]:
        p, g, update = (np.asarray(tree[name][kind]) for tree in (params, gradient, updates))
        # Nesterov's momentum: the mean, 0.1 g, debiased as the next step's will be, and g.
        nesterov = 0.9 * 0.1 / (1 - 0.9**2) + 1
        expected = -3e-3 * (nesterov * g / (np.abs(g) + 1e-8) + 0.01 * p)
        np.testing.assert_allclose(update, expected, rtol=1e-4)  # 1 - 0.999 in float32.


def test_devices_share_its_state_and_take_the_same_steps(toy):
    params, gradient = (Params(unet=arrays(seed), lgm=None) for seed in (0, 1))
    config = dataclasses.replace(toy.config, optim=OPTIM)
    optimizer = make_optimizer(OPTIM, 10)
    states = []
    for count, zero in [(1, 0), (4, 2)]:
        train = dataclasses.replace(config.train, zero=zero, smallest_shared=90)
        layout = make_layout(train, jax.devices()[:count])
        training = Training(config, toy.networks, optimizer, layout)
        fresh = init_state(jax.tree.map(jnp.copy, params), optimizer)
        state = place(fresh, layout.of_state(fresh))
        given = place(gradient, layout.shardings(gradient, stage=2))
        state = train_step_update(training, train_step_update(training, state, given), given)
        (muon,) = {a.sharding.shard_shape(a.shape) for a in momenta(state)}
        assert (muon == (3, 3, 16, 24)) == (count == 1)
        states.append(gather(state))

    # Products are summed in another order.
    chex.assert_trees_all_close(*states, rtol=1e-4, atol=1e-6)
    moved = np.abs(states[0].params.unet["conv"]["kernel"] - params.unet["conv"]["kernel"])
    assert 5e-4 < moved.mean() < 2e-3  # Twice 0.2 of the rate, about; AdamW: twice all of it.


def momenta(state):
    """The optimizer's arrays as large as the first kernel, of which Muon keeps one."""
    return [a for a in jax.tree.leaves(state.opt_state) if a.shape == (3, 3, 16, 24)]


def test_a_run_goes_on_with_it(tiny, tmp_path):
    optimizer = make_optimizer(OPTIM, 10)
    state = init_state(Params(unet=arrays(0), lgm=None), optimizer)
    gradient = Params(unet=arrays(1), lgm=None)
    _, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    state = dataclasses.replace(state, step=jnp.int32(1), opt_state=opt_state)
    assert len(momenta(state)) == 1  # AdamW would keep two.

    checkpoints = RunCheckpoints(tmp_path / "checkpoints", tiny, Frozen(vae=None))
    checkpoints.save(state, {"next_index": 1})
    checkpoints.close()
    fresh = init_state(Params(unet=arrays(2), lgm=None), optimizer)
    again = RunCheckpoints(tmp_path / "checkpoints", tiny, Frozen(vae=None))
    restored = again.restore(fresh)
    again.close()
    assert restored is not None
    chex.assert_trees_all_equal(restored[0], state)


def test_its_running_mean_may_be_kept_in_bfloat16():
    optim = dataclasses.replace(OPTIM, first_moment="bfloat16")
    state = make_optimizer(optim, 10).init(arrays(0))
    (mean,) = (a for a in jax.tree.leaves(state) if a.shape == (3, 3, 16, 24))
    assert mean.dtype == jnp.bfloat16
