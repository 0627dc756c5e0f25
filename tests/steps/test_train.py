"""The step around Algorithm 1's loss: optimizer, average, draws, devices. The loss itself is
compared with one written by hand in `test_paper.py`."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from o3d_jax.config import OptimConfig
from o3d_jax.parallel.layout import AXES, Layout, make_layout, own_rows
from o3d_jax.parallel.shards import place, place_batch
from o3d_jax.steps.draws import draw, draw_coin
from o3d_jax.steps.losses import _lpips
from o3d_jax.steps.train import StepInputs, Training, init_state, make_optimizer, train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")
RATE = 1e-3  # The tiny configuration's.


@pytest.fixture(scope="module")
def optimizer(toy):
    return make_optimizer(toy.config.optim, 10)


@pytest.fixture(scope="module")
def run(toy, optimizer):
    """Steps from the start, or from a state; one key each time, as in a run."""

    def run(
        batch,
        coins,
        state=None,
        frozen=toy.frozen,
        seed=3,
        layout=None,
        config=toy.config,
        raw=False,
        stop=None,
    ):
        if state is None:
            state = init_state(jax.tree.map(jnp.copy, toy.params), optimizer)
        reports = []
        for coin in coins:
            training = Training(config, toy.networks, optimizer, layout)
            given = StepInputs(batch=batch, key=jax.random.key(seed), stop=stop)
            state, report = train_step(training, state, frozen, given, use_feedback=coin)
            reports.append(report if raw else (report.terms, report.gradient_norm))
        return state, reports

    return run


@pytest.fixture(scope="module")
def batch8(tiny):
    """One object a device."""
    from support.toy_networks import random_batch

    return random_batch(tiny, 8)


COINS = [True] * 5


@pytest.fixture(scope="module")
def alone(run, batch8):
    """Five steps on one device."""
    return run(batch8, COINS)


def test_same_seed_twice_is_bit_identical(run, batch8, alone):
    chex.assert_trees_all_equal(run(batch8, COINS), alone)


def test_another_seed_and_another_step_draw_other_numbers(toy, run, optimizer, batch8, alone):
    (_, first), (_, other) = alone, run(batch8, [True], seed=4)
    assert abs(other[0][0].diffusion / first[0][0].diffusion - 1) > 1e-3
    state = init_state(jax.tree.map(jnp.copy, toy.params), optimizer)
    _, later = run(batch8, [True], replace(state, step=jnp.int32(1)))
    assert abs(later[0][0].diffusion / first[0][0].diffusion - 1) > 1e-3


def test_training_compiles_once_for_each_side_of_the_coin(run, batch8):
    train_step.clear_cache()
    run(batch8, [True, False, False, True])  # From a fresh state, and from what a step returned.
    assert train_step._cache_size() == 2


def test_step_clips_the_gradient_applies_adamw_and_averages(toy, alone, run, batch8):
    state, ((_, norm),) = run(batch8, [True])
    assert int(state.step) == 1
    (adam,) = [s for s in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(s)]
    clipped = jax.tree.map(lambda m: m / 0.1, adam.mu)  # After one step m is (1 - 0.9) g.
    assert norm > 1  # So there is something to clip.
    np.testing.assert_allclose(norm_of(clipped), 1, rtol=1e-5)  # float32 sums.

    def check(old, new, average, g):
        expected = old - RATE * (g / (np.abs(g) + 1e-8) + 0.01 * old)
        np.testing.assert_allclose(new, expected, atol=1e-6)  # float32 rounding of about 1.
        np.testing.assert_allclose(average, 0.1 * old + 0.9 * new, atol=1e-6)  # (1 + 0) / (10 + 0)

    jax.tree.map(check, toy.params, state.params, state.ema, clipped)


def is_adam(leaf):
    return isinstance(leaf, optax.ScaleByAdamState)


def norm_of(tree):
    squares = [np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree)]
    return np.sqrt(np.sum(squares))


def test_step_follows_the_slope_of_the_loss(toy, run, optimizer, batch8):
    state, ((terms, norm),) = run(batch8, [False])
    (adam,) = [s for s in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(s)]
    # Along the colors of Gaussians: nothing stops that gradient, and images are smooth in them.
    slope = np.array(adam.mu.lgm["params"]["out"]["bias"]) / 0.1 * max(float(norm), 1)
    slope[:-3] = 0
    totals = []
    for shift in (-0.1, 0.1):
        lgm = jax.tree.map(jnp.copy, toy.params.lgm)
        lgm["params"]["out"]["bias"] += shift * slope / np.linalg.norm(slope)
        moved = jax.tree.map(jnp.copy, replace(toy.params, lgm=lgm))
        _, ((moved_terms, _),) = run(batch8, [False], init_state(moved, optimizer))
        np.testing.assert_array_equal(moved_terms.diffusion, terms.diffusion)  # Same draws.
        totals.append(float(moved_terms.total))
    # The third derivative of tanh, times 0.1^2 / 6; float32 sums, 1e-6 of 0.02.
    np.testing.assert_allclose((totals[1] - totals[0]) / 0.2, np.linalg.norm(slope), rtol=0.01)


def test_average_slows_down_to_its_decay(toy, run, optimizer, batch8):
    state = init_state(jax.tree.map(jnp.copy, toy.params), optimizer)
    late = replace(state, step=jnp.int32(100_000), ema=jax.tree.map(jnp.zeros_like, toy.params))
    state, _ = run(batch8, [True], late)
    jax.tree.map(
        lambda e, p: np.testing.assert_allclose(e, 0.001 * p, rtol=1e-3, atol=1e-7),
        state.ema,
        state.params,
    )


def layout_of(config, devices=8, **train):
    """Toys are small: arrays of 90 elements and more are shared out."""
    train = replace(config.train, batch_size=8, smallest_shared=90, **train)
    return make_layout(train, jax.devices()[:devices])


def placed_system(layout, toy, optimizer, batch):
    """State, frozen networks and batch as the layout has them."""
    state = init_state(jax.tree.map(jnp.copy, toy.params), optimizer)
    state = place(state, layout.of_state(state))
    frozen = place(toy.frozen, layout.of_frozen(toy.frozen))
    return state, frozen, place_batch(layout, batch)


def held(tree):
    """Bytes on one device."""
    return sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(tree))


def argument_bytes(arguments, toy, optimizer, layout):
    """Of the compiled step, on one device."""
    state, frozen, batch, key = arguments
    training = Training(toy.config, toy.networks, optimizer, layout)
    given = StepInputs(batch=batch, key=key)
    lowered = train_step.lower(training, state, frozen, given, use_feedback=True)
    return lowered.compile().memory_analysis().argument_size_in_bytes


def share(tree, count):
    """Bytes of it where arrays are shared out by so many devices that can be."""

    def bytes_of(a):
        shared = a.size >= 90 and any(n % count == 0 for n in a.shape)
        return a.nbytes // count if shared else a.nbytes

    return sum(bytes_of(a) for a in jax.tree.leaves(tree))


def assert_same_steps(ours, expected):
    """States after the same steps, with sums over objects and pixels in another order."""

    def check(found, expected):
        # Rounding is a whole step for Adam where the gradient is nothing else.
        assert np.mean(np.abs(found - expected) > 0.05 * RATE) < 0.01

    jax.tree.map(check, (ours.params, ours.ema), (expected.params, expected.ema))

    def check_moments(found, expected):
        # The last gradients are at slightly other parameters, too.
        assert np.mean(np.abs(found - expected) > 0.01 * np.abs(expected).max()) < 0.01

    jax.tree.map(check_moments, ours.opt_state, expected.opt_state)


@pytest.mark.parametrize(
    ("zero", "fsdp", "kept"),
    [(0, 4, (1, 1, 1)), (1, 4, (1, 4, 4)), (2, 2, (1, 2, 2)), (3, 4, (4, 4, 4)), (3, 1, (1, 1, 1))],
)
def test_zero_stages_take_the_steps_of_one_device_and_hold_their_share(
    toy, run, optimizer, batch8, alone, zero, fsdp, kept
):
    layout = layout_of(toy.config, zero=zero, fsdp=fsdp)
    state, frozen, placed = placed_system(layout, toy, optimizer, batch8)
    assert share(toy.params, 4) < 0.5 * share(toy.params, 1)  # So there is something to share.
    for part, count in zip((state.params, state.ema, state.opt_state), kept, strict=True):
        assert held(part) == share(part, count)
    places = jax.tree.map(lambda a: a.sharding, state)
    assert {shard.data.shape[0] for shard in placed.images.addressable_shards} == {1}

    taken = argument_bytes((state, frozen, placed, jax.random.key(3)), toy, optimizer, layout)
    print(f"stage {zero} over {fsdp or 8} devices: the program takes {taken} bytes on each")
    assert taken == held((state, frozen, placed)) + 8  # Two numbers of a key.
    programs = train_step._cache_size()
    many, reports = run(placed, COINS, state, frozen, layout=layout)
    assert train_step._cache_size() == programs + 1  # Not once more for states it returned.
    for (terms, norm), (terms_alone, norm_alone) in zip(reports, alone[1], strict=True):
        # Sums over objects and pixels in another order.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), terms, terms_alone
        )
        np.testing.assert_allclose(norm, norm_alone, rtol=1e-3)

    def check_place(found, sharding):
        assert found.sharding.is_equivalent_to(sharding, found.ndim)

    jax.tree.map(check_place, many, places)
    assert_same_steps(many, alone[0])


def memories(tree):
    """Where each array lies, by whether it is large enough to be offloaded."""
    return {(a.size >= 90, a.sharding.memory_kind) for a in jax.tree.leaves(tree)}


@pytest.mark.parametrize("devices", [1, 2])
def test_an_offloaded_optimizer_rests_with_the_host_and_takes_the_same_steps(
    toy, run, optimizer, batch8, devices
):
    states = []
    for offload in (True, False):
        layout = layout_of(toy.config, devices, zero=1, offload_optimizer=offload)
        state, frozen, batch = placed_system(layout, toy, optimizer, batch8)
        programs = train_step._cache_size()
        found, _ = run(batch, COINS, state, frozen, layout=layout)
        assert train_step._cache_size() == programs + 1  # Not once more for where it lies.
        assert memories((found.params, found.ema)) == {(True, "device"), (False, "device")}
        at_rest = "pinned_host" if offload else "device"
        assert memories(found.opt_state) == {(True, at_rest), (False, "device")}
        states.append(found)

    chex.assert_trees_all_equal(*states)


@pytest.mark.parametrize(("zero", "devices"), [(1, 2), (3, 4)])
def test_accumulated_gradients_are_those_of_the_whole_batch(
    toy, run, optimizer, batch8, alone, zero, devices
):
    layout = layout_of(toy.config, devices, zero=zero, accumulate=2)
    placed = placed_system(layout, toy, optimizer, batch8)
    state, frozen, batch = placed
    config = replace(toy.config, train=replace(toy.config.train, accumulate=2))
    ours, reports = run(batch, COINS, state, frozen, layout=layout, config=config)
    for (terms, _), (terms_alone, _) in zip(reports, alone[1], strict=True):
        np.testing.assert_allclose(terms.total, terms_alone.total, rtol=1e-4)
    assert_same_steps(ours, alone[0])


def test_a_step_that_is_not_finite_changes_nothing_but_its_number(toy, run, optimizer, batch8):
    state, _ = run(batch8, [True])
    before = jax.tree.map(np.array, state)
    spoilt = replace(batch8, images=batch8.images.at[5, 2, 0, 0, 1].set(jnp.nan))
    after, reports = run(spoilt, [True], state, raw=True)
    assert not reports[0].is_finite
    chex.assert_trees_all_equal(after, replace(before, step=jnp.int32(2)))
    _, reports = run(batch8, [True], after, raw=True)
    assert reports[0].is_finite and np.isfinite(reports[0].terms.total)


def test_a_step_is_the_last_if_any_process_says_so(toy, run, batch8):
    for flags in ([False] * 3, [False, True, False]):
        _, reports = run(batch8, [True], raw=True, stop=jnp.array(flags))
        assert bool(reports[0].is_last) == any(flags)


def test_small_arrays_are_whole_and_large_ones_shared_along_their_largest_even_axis(toy):
    layout = make_layout(replace(toy.config.train, fsdp=2, zero=2))
    shapes = {"large": (600, 700, 3), "odd": (601, 602), "flat": (2**18 + 1,), "small": (500, 500)}
    arrays = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    assert layout.axes(arrays, stage=2) == {"large": 1, "odd": 1, "flat": -1, "small": -1}
    assert set(layout.axes(arrays, stage=3).values()) == {-1}
    found = {k: tuple(s.spec) for k, s in layout.shardings(arrays, stage=1).items()}
    assert found == {"large": (None, "fsdp"), "odd": (None, "fsdp"), "flat": (), "small": ()}


def test_rows_of_a_batch_go_where_their_devices_are_in_the_mesh(toy):
    """As on a TPU, whose mesh follows links and not numbers."""
    order = [jax.devices()[i] for i in (5, 0, 7, 2, 1, 6, 3, 4)]
    mesh = jax.sharding.Mesh(np.reshape(order, (2, 4)), AXES)
    layout = Layout(mesh=mesh)
    assert own_rows(layout, 16) == tuple(range(16))
    placed = place_batch(layout, np.arange(16))
    for shard in placed.addressable_shards:
        place = order.index(shard.device)
        np.testing.assert_array_equal(shard.data, [2 * place, 2 * place + 1])


def test_impossible_splits_are_refused(toy):
    train = toy.config.train
    for change, message in (
        ({"fsdp": 3, "batch_size": 24}, "train.fsdp 3 does not divide the 8 devices"),
        ({"batch_size": 3}, "train.batch_size 3 is not a multiple of the 8 devices"),
        ({"accumulate": 2}, "train.batch_size 8 is not a .* times train.accumulate 2"),
    ):
        with pytest.raises(ValueError, match=message):
            make_layout(replace(train, **change))


def test_coin_is_fair_and_the_same_whenever_it_is_thrown_for_a_step(toy):
    coins = [draw_coin(toy.config, step) for step in range(400)]
    assert abs(np.mean(coins) - 0.5) < 0.1  # Four standard deviations.
    assert coins[:20] == [draw_coin(toy.config, step) for step in range(20)]
    for probability in (0.0, 1.0):
        diffusion = replace(toy.config.diffusion, feedback_probability=probability)
        config = replace(toy.config, diffusion=diffusion)
        assert {draw_coin(config, step) for step in range(20)} == {probability == 1}


def test_draws_are_of_their_distributions_and_independent(toy):
    draws = jax.jit(lambda key: draw(toy.config, 1000, key))(jax.random.key(1))
    logs = np.log([draws.sigma, draws.condition.sigma])
    # 1000 draws: four standard deviations of mean and deviation.
    error = np.abs(logs.mean(axis=1) - [1.0, -3.0])
    assert (error < 4 * np.array([1.6, 0.5]) / np.sqrt(1000)).all()
    np.testing.assert_allclose(logs.std(axis=1), [1.6, 0.5], rtol=4 / np.sqrt(2000))
    assert draws.noise.shape == (1000, 4, 8, 8, 4)
    for noise in (draws.noise, draws.posterior, draws.condition.noise, draws.condition.posterior):
        noise = np.asarray(noise)
        assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
        assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)
    dropout = draws.condition.dropout
    np.testing.assert_allclose(np.sort(dropout), (np.arange(1000) + 0.5) / 1000, atol=0.06)
    noises = [a[:, 0, 0, 0, 0] for a in (draws.noise, draws.posterior)]
    noises += [a[:, 0, 0, 0] for a in (draws.condition.noise, draws.condition.posterior)]
    columns = np.stack([*logs, dropout, *noises])
    correlations = np.corrcoef(columns) - np.eye(7)
    assert np.abs(correlations).max() < 4 / np.sqrt(1000)


def rates(optim, steps):
    """Learning rates, read off Adam's steps on a gradient that never changes: their size is it."""
    optimizer = make_optimizer(replace(optim, weight_decay=0.0), steps)
    params = jnp.zeros(())
    state, found = optimizer.init(params), []
    for _ in range(steps):
        update, state = optimizer.update(jnp.array(0.3), state, params)
        found.append(-float(update))
    return found


def test_constant_rate_holds_from_the_first_step():
    # Adam's 1e-8 in the denominator is 3e-8 of it; float32 powers of 0.999 are good to 1e-4.
    np.testing.assert_allclose(rates(OptimConfig(), 5), 1e-5, rtol=1e-3)


def test_a_first_moment_in_bfloat16_takes_half_and_the_same_steps_but_for_its_rounding():
    gradients = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)

    def steps(first_moment):
        optimizer = make_optimizer(OptimConfig(first_moment=first_moment, weight_decay=0.0), 6)
        params = {"w": jnp.zeros(50)}
        state = optimizer.init(params)
        for gradient in gradients:
            update, state = optimizer.update({"w": jnp.asarray(gradient)}, state, params)
            params = optax.apply_updates(params, update)
        types = {str(a.dtype) for a in jax.tree.leaves(state) if a.ndim}
        return np.asarray(params["w"]), types

    (whole, whole_types), (half, half_types) = steps("float32"), steps("bfloat16")
    assert whole_types == {"float32"} and half_types == {"float32", "bfloat16"}
    # Each of six steps of about 1e-5 is off by the roundings of the mean, 2^-9 of it at a step, of
    # which 1 + 0.9 + ... + 0.9^5 = 4.7 are still in it.
    np.testing.assert_allclose(half, whole, rtol=0, atol=6 * 1e-5 * 4.7 * 2**-9)
    assert np.abs(half - whole).max() > 0


def test_warm_up_is_linear():
    found = rates(OptimConfig(learning_rate=1e-3, warmup_steps=4), 7)
    expected = [0, 2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_cosine_falls_to_a_twentieth():
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=2, schedule="cosine")
    found = rates(optim, 11)
    floor, turns = 1e-3 / 20, np.minimum(np.arange(9) / 9, 1)
    expected = floor + (1e-3 - floor) * (1 + np.cos(np.pi * turns)) / 2
    np.testing.assert_allclose(found, [0, 5e-4, *expected], rtol=1e-3)


def with_remat(toy, remat):
    model = replace(toy.config.model, remat=remat)
    return replace(toy, config=replace(toy.config, model=model))


@pytest.mark.parametrize("remat", [False, True])
def test_perceptual_loss_is_blind_to_detail_finer_than_its_size(toy, remat):
    size = 512  # Twice the 256 px at which images are compared.
    sign = jnp.where((jnp.arange(size)[:, None] + jnp.arange(size)[None]) % 2 == 0, 1.0, -1.0)
    checks = jnp.broadcast_to(0.5 + 0.4 * sign[..., None], (1, 1, size, size, 3))
    gray = jnp.full_like(checks, 0.5)
    same, fine, coarse = (
        _lpips(with_remat(toy, remat), gray, other) for other in (gray, checks, gray + 0.4)
    )
    # The averaging leaves something of the checks along the border only.
    assert abs(fine - same) < 0.01 * (coarse - same)


def test_perceptual_loss_view_by_view_is_the_same_and_so_is_its_gradient(toy, batch8):
    def loss(images, remat):
        other = batch8.images[::-1][:3]
        return _lpips(with_remat(toy, remat), images, other)

    once, by_view = (jax.value_and_grad(loss)(batch8.images[:3], r) for r in (False, True))
    np.testing.assert_allclose(by_view[0], once[0], rtol=1e-6)  # Sums in another order.
    np.testing.assert_allclose(by_view[1], once[1], rtol=1e-5, atol=1e-9)
    assert np.abs(once[1]).max() > 1e-6
