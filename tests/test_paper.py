"""The paper, claim by claim: `o3d_jax/PAPER.md` says which test, here or elsewhere, holds which."""

import ast
import re
import runpy
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax import edm
from o3d_jax.config import Config
from o3d_jax.geometry.orbits import orbit
from o3d_jax.geometry.rays import pluecker_rays
from o3d_jax.nn.networks import build_networks
from o3d_jax.steps import losses, sample
from o3d_jax.steps.denoise import denoise
from o3d_jax.steps.draws import draw
from o3d_jax.steps.train import make_optimizer
from o3d_jax.types import Condition, Maps
from support import handwritten
from support.toy_networks import filled_system

pytestmark = pytest.mark.usefixtures("quick_compilation")
ROOT = Path(__file__).parents[1]
TERMS = ("total", "diffusion", "rgb_noisy", "rgb_clean", "lpips_noisy", "lpips_clean")
"""Those of Algorithm 1; the others are of parts that train alone, or switched off here."""


def rows(title):
    """Cells of the table under a heading of PAPER.md, without its head."""
    text = (ROOT / "o3d_jax" / "PAPER.md").read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def definitions(path):
    """Dotted names of all functions and classes of a file."""
    found = set()

    def visit(node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + child.name)
                visit(child, f"{prefix}{child.name}.")

    visit(ast.parse(path.read_text()), "")
    return found


def test_every_claim_has_its_code_and_its_test():
    tests = set().union(*(definitions(path) for path in (ROOT / "tests").rglob("test_*.py")))
    claims = rows("Claims")
    for claim, places, names in claims:
        assert re.findall(r"`test_\w+`", names), claim
        for name in re.findall(r"`(\w+)`", names):
            assert name in tests, f"{claim}: no test {name}"
        for path, name in re.findall(r"`([\w/.]+)::([\w.]+)`", places):
            assert name in definitions(ROOT / "o3d_jax" / path), f"{claim}: no {path}::{name}"
        assert "::" in places, claim
    numbers = [int(n) for claim, *_ in claims for n in re.findall(r"Eq\. (\d+)", claim)]
    assert sorted(set(numbers)) == list(range(1, 15))
    for part in ["Alg. 1", "Alg. 2", "Table 3", "A.1", "A.2", "A.3", "Sec. 4.1"]:
        assert any(claim.startswith(part) for claim, *_ in claims), part


def test_every_claim_tested_here_is_in_the_table():
    files = Path(__file__).parent.glob("test_paper*.py")
    found = set().union(*(definitions(path) for path in files))
    here = {name for name in found if re.fullmatch(r"test_\w+", name)}
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "o3d_jax" / "PAPER.md").read_text()))
    about_the_table = {name for name in here if name.startswith("test_every_claim")}
    assert here - about_the_table <= named


# Sec. 3.1 and App. A.1: the denoiser.


def whatever(b):
    """A condition and maps that the networks below don't read."""
    condition = Condition(
        clip=jnp.zeros((b, 1, 2)), latents=jnp.zeros((b, 1, 1, 1)), added_ids=jnp.zeros((b, 3))
    )
    return condition, Maps.nothing(b, 1, 1, 1)


def pixels(*values):
    """One latent an object."""
    return jnp.array(values).reshape(-1, 1, 1, 1, 1)


def test_eq1_by_hand():
    def network(x, c_noise, condition, maps):
        return 2 * x + pixels(*c_noise)

    found = denoise(network, pixels(4.0, -1.0), jnp.array([3.0, 0.5]), *whatever(2))
    # x / (s^2 + 1) - s / sqrt(s^2 + 1) (2 x / sqrt(s^2 + 1) + log(s) / 4)
    expected = [
        4 / 10 - 3 / np.sqrt(10) * (8 / np.sqrt(10) + np.log(3) / 4),
        -1 / 1.25 - 0.5 / np.sqrt(1.25) * (-2 / np.sqrt(1.25) + np.log(0.5) / 4),
    ]
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-6)  # float32 rounding.


def test_eq1_is_the_identity_without_noise():
    x = pixels(0.3, -1.7)
    found = denoise(lambda x, *_: 100 * x, x, jnp.full(2, 1e-6), *whatever(2))
    np.testing.assert_allclose(found, x, rtol=2e-4)  # 100 sigma.


def test_eq6_with_the_network_that_knows_the_noise_is_the_truth():
    x0, noise = jax.random.normal(jax.random.key(0), (2, 5, 3, 2, 4, 4))
    sigma = jnp.array([0.002, 0.4, 1.0, 9.0, 700.0])
    s = sigma[:, None, None, None, None]
    velocity = (noise - s * x0) / jnp.sqrt(s**2 + 1)  # What F predicts (Salimans & Ho 2022).
    found = denoise(lambda *_: velocity, x0 + s * noise, sigma, *whatever(5))
    # x of 700 is divided by 700^2; nothing is lost but rounding, of x0 and of c_out F.
    np.testing.assert_allclose(found, x0, atol=2e-6)


SIGMAS = [0.002, 0.5, 2.0, 700.0]  # Without 1, where a wrong c_noise hides: log 1 = 0.


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("c_in", [0.999998, 0.8944271910, 0.4472135955, 0.001428569971]),
        ("c_out", [-0.001999996, -0.4472135955, -0.8944271910, -0.9999989796]),
        ("c_skip", [0.999996, 0.8, 0.2, 2.040812161e-06]),
        ("c_noise", [-1.553652025, -0.1732867951, 0.1732867951, 1.637770084]),
    ],
)
def test_eq7_to_eq10_by_hand(name, expected):
    np.testing.assert_allclose(getattr(edm.scalings(jnp.array(SIGMAS)), name), expected, rtol=1e-6)


def test_eq11_by_hand():
    expected = [250001.0, 5.0, 1.25, 1.000002041]
    np.testing.assert_allclose(edm.loss_weight(jnp.array(SIGMAS)), expected, rtol=1e-6)


def test_eq4_step_follows_the_score_of_a_mixture():
    values, weights = np.array([-1.0, 0.7]), np.array([0.3, 0.7])  # Data are one of two numbers.

    def density(x, sigma):
        return np.sum(weights * np.exp(-((x - values) ** 2) / (2 * sigma**2)))

    def denoiser(x, sigma):
        shape = (-1, *(1,) * x.ndim)
        a, w = jnp.asarray(values).reshape(shape), jnp.asarray(weights).reshape(shape)
        p = w * jnp.exp(-((x[None] - a) ** 2) / (2 * sigma[0] ** 2))
        return (p * a).sum(axis=0) / p.sum(axis=0)  # Bayes' mean, the best estimate.

    sigma, sigma_next, x = 0.8, 0.75, np.array([-1.4, 0.1, 0.9])
    step = 1e-4
    score = [
        (np.log(density(z + step, sigma)) - np.log(density(z - step, sigma))) / (2 * step)
        for z in x
    ]
    start = pixels(*x)
    x0 = denoiser(start, jnp.full(3, sigma))
    found = sample.ode_step(denoiser, start, x0, jnp.array(sigma), jnp.array(sigma_next), "euler")
    # Eq. 3 with sigma for t; float32 rounding.
    expected = x - sigma * np.array(score) * (sigma_next - sigma)
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-6)


def test_sec31_pluecker_rays_hold_the_points_that_their_pixels_show():
    cameras = orbit(20.0, np.array([10.0, 130.0, 250.0]), 1.5, 49.1)
    rays = np.asarray(pluecker_rays(cameras, (3, 5)), np.float64)
    moment, direction = rays[..., :3], rays[..., 3:]
    for view, pose in enumerate(np.asarray(cameras.camera_to_world, np.float64)):
        k = np.diag([5, 3, 1]) @ np.asarray(cameras.intrinsics[view], np.float64)
        for row, column in [(0, 4), (2, 1)]:
            ray = np.linalg.inv(k) @ [column + 0.5, row + 0.5, 1]
            point = pose[:3, :3] @ (1.7 * ray) + pose[:3, 3]
            at = view, row, column
            # Of any point p of the line, p x d is its moment; float32 rounding.
            np.testing.assert_allclose(np.cross(point, direction[at]), moment[at], atol=1e-6)
            assert direction[at] @ (pose[:3, :3] @ ray) > 0


# Algorithm 1.


@pytest.fixture(scope="module")
def draws(toy):
    """One object without embedding, one with all, one without both."""
    drawn = draw(toy.config, 3, jax.random.key(7))
    dropout = jnp.array([0.05, 0.5, 0.15])
    return replace(drawn, condition=replace(drawn.condition, dropout=dropout))


@pytest.fixture(scope="module")
def ours(toy, batch, draws, quick_compilation):
    """Terms of Algorithm 1's loss and their gradients, from parameters and the coin."""

    def loss(params, frozen, batch, draws, coin):
        model = replace(toy, params=params, frozen=frozen)
        _, terms = losses.train_loss(model, batch, draws, coin)
        return terms

    run = jax.jit(handwritten.terms_and_gradients(loss), static_argnums=4)

    def evaluate(coin, params=toy.params, draws=draws):
        terms, gradients = run(params, toy.frozen, batch, draws, coin)
        each = [jax.tree.map(lambda a, i=i: a[i], gradients) for i in range(len(TERMS))]
        return terms, dict(zip(TERMS, each, strict=True))

    return evaluate


def nothing_in(gradient):
    return not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def shifted(params):
    return jax.tree.map(lambda w: w + 0.2, params)


@pytest.fixture(scope="module")
def by_hand(toy, batch, draws, quick_compilation):
    """The same from `handwritten.py`, gradients stacked."""

    def loss(*inputs):
        return handwritten.train_loss(toy.networks, toy.config.optim, *inputs)

    run = jax.jit(handwritten.terms_and_gradients(loss))
    return lambda coin: run(toy.params, toy.frozen, batch, draws, jnp.array(coin))


@pytest.mark.parametrize("coin", [False, True])
def test_alg1_loss_and_gradients_are_those_written_by_hand(ours, by_hand, coin):
    (terms, found), (expected, slopes) = ours(coin), by_hand(coin)
    for i, name in enumerate(TERMS):
        # Sums of float32 in another order.
        np.testing.assert_allclose(getattr(terms, name), getattr(expected, name), rtol=1e-5)

        def check(a, b, i=i):
            # Relative to the largest: small entries are small differences of large ones.
            np.testing.assert_allclose(a, b[i], rtol=0, atol=1e-4 * np.abs(b[i]).max() + 1e-9)

        jax.tree.map(check, found[name], slopes)


def test_alg1_feedback_carries_no_gradient_but_matters(toy, ours):
    terms, gradients = ours(True)
    assert nothing_in(gradients["diffusion"].lgm)
    assert not nothing_in(gradients["diffusion"].unet)
    other, _ = ours(True, replace(toy.params, lgm=shifted(toy.params.lgm)))
    assert abs(other.diffusion / terms.diffusion - 1) > 1e-3


def test_alg1_without_feedback_maps_do_not_matter(toy, ours):
    terms, gradients = ours(False)
    assert nothing_in(gradients["diffusion"].lgm)
    other, _ = ours(False, replace(toy.params, lgm=shifted(toy.params.lgm)))
    assert other.diffusion == terms.diffusion
    assert other.rgb_noisy != terms.rgb_noisy


@pytest.mark.parametrize("coin", [False, True])
def test_alg1_reconstruction_does_not_train_the_denoiser(toy, ours, coin):
    terms, gradients = ours(coin)
    for name in ("rgb_noisy", "rgb_clean", "lpips_noisy", "lpips_clean"):
        assert nothing_in(gradients[name].unet)
        assert nothing_in(gradients[name].clip)
    other, _ = ours(coin, replace(toy.params, unet=shifted(toy.params.unet)))
    assert other.rgb_noisy != terms.rgb_noisy  # It does decide what is reconstructed,
    assert other.rgb_clean == terms.rgb_clean  # but for the clean views.


@pytest.mark.parametrize("coin", [False, True])
def test_sec32_reconstruction_learns_from_noisy_and_from_clean_views(ours, draws, coin):
    terms, gradients = ours(coin)
    for name in ("rgb_noisy", "rgb_clean", "lpips_noisy", "lpips_clean"):
        assert not nothing_in(gradients[name].lgm)
    other, _ = ours(coin, draws=replace(draws, sigma=2 * draws.sigma))
    assert other.rgb_noisy != terms.rgb_noisy
    assert other.rgb_clean == terms.rgb_clean  # c_noise is 0, whatever sigma.


def test_eq2_total_is_the_weighted_sum_of_its_terms(toy, ours):
    terms, _ = ours(True)
    t = {name: float(getattr(terms, name)) for name in TERMS}
    optim = toy.config.optim
    noisy = t["rgb_noisy"] + optim.lpips_weight * t["lpips_noisy"]
    clean = t["rgb_clean"] + optim.lpips_weight * t["lpips_clean"]
    expected = t["diffusion"] + noisy + optim.clean_weight * clean
    np.testing.assert_allclose(t["total"], expected, rtol=1e-6)  # float32 rounding.
    assert min(t.values()) > 0.01


@pytest.mark.slow
def test_alg1_holds_for_the_real_networks(tiny, batch):
    unet = replace(tiny.model.unet, block_out_channels=(8, 16), num_attention_heads=(1, 2))
    model = replace(tiny.model, unet=unet)
    real = filled_system(replace(tiny, model=model), build_networks(model))
    draws = draw(real.config, 3, jax.random.key(7))

    def loss(params, frozen, batch, draws):
        model = replace(real, params=params, frozen=frozen)
        return losses.train_loss(model, batch, draws, True)[1]

    _, gradients = jax.jit(handwritten.terms_and_gradients(loss))(
        real.params, real.frozen, batch, draws
    )
    unseen = re.compile(
        r"attn2'\]\['to_[qk]'|transformer_blocks_0'\]\['norm2'"
    )  # A softmax over 1.
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        names = jax.tree_util.keystr(path)
        belongs = names.startswith(".lgm")
        trained = {name: bool(np.any(leaf[i])) for i, name in enumerate(TERMS)}
        silent = unseen.search(names) is not None
        assert trained == {
            "total": not silent,
            "diffusion": not (belongs or silent),
            "rgb_noisy": belongs,
            "rgb_clean": belongs,
            "lpips_noisy": False,  # Off in this configuration.
            "lpips_clean": False,
        }, names


# Sec. 4.1.


def test_sec41_configuration_of_the_paper():
    config = runpy.run_path(str(ROOT / "configs" / "ouroboros3d.py"))["config"]
    model = replace(config.model, vae_chunk=0)  # Saves memory, and changes nothing else.
    elsewhere = replace(config, data=replace(config.data, cache=None), model=model)
    assert elsewhere == Config(name="ouroboros3d")  # So the defaults are the paper's, too.
    assert (config.model.image_size, config.model.num_views) == (512, 8)
    assert (config.data.frames_per_orbit, config.data.elevation) == (16, (-5.0, 30.0))
    assert config.data.objects == 80_000
    assert (config.train.steps, config.train.batch_size) == (30_000, 32)
    assert (config.optim.learning_rate, config.optim.clip_norm) == (1e-5, 1.0)
    assert (config.optim.schedule, config.optim.warmup_steps) == ("constant", 0)
    assert config.optim.lpips_weight == 1.0
    assert (config.diffusion.p_mean, config.diffusion.p_std) == (1.0, 1.6)
    assert config.diffusion.feedback_probability == 0.5
    assert (config.sample.levels, config.sample.feedback) == (25, True)
    assert (config.sample.min_guidance, config.sample.max_guidance) == (1.0, 3.0)
    assert (config.model.lgm.num_views, config.model.unet.feedback) == (4, "rgb+ccm")


def test_sec41_sampling_takes_25_levels_from_700_to_0():
    sigmas = np.asarray(sample.noise_levels(Config(name="paper").sample))
    assert sigmas.shape == (26,)
    assert np.all(np.diff(sigmas) < 0)
    np.testing.assert_allclose(sigmas[[0, 24, 25]], [700, 0.002, 0], rtol=1e-5)  # Seventh powers.


def test_sec41_optimizer_is_adamw_at_1e_5_after_clipping_at_1():
    optimizer = make_optimizer(Config(name="paper").optim, 30_000)
    rng = np.random.default_rng(0)
    params = rng.normal(size=(2, 3))
    gradients = [size * g / np.linalg.norm(g) for size in (5.0, 0.2, 3.0, 0.9)
                 for g in [rng.normal(size=(2, 3))]]  # fmt: skip
    state = optimizer.init(jnp.asarray(params, jnp.float32))
    m = v = np.zeros((2, 3))
    for t, g in enumerate(gradients, start=1):
        update, state = optimizer.update(
            jnp.asarray(g, jnp.float32), state, jnp.asarray(params, jnp.float32)
        )
        g = g / max(1, np.linalg.norm(g))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        adam = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        # 1 - 0.999^t in float32 is good to 1e-4.
        np.testing.assert_allclose(update, -1e-5 * (adam + 0.01 * params), rtol=3e-4)
