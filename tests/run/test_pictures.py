"""What people see of an evaluation: means by name, and the rows of its picture."""

import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.run import pictures
from o3d_jax.run.heldout import HeldOutFigures
from o3d_jax.run.pictures import evaluation_sheet, figures_row
from o3d_jax.run.programs import Evaluation
from o3d_jax.types import Batch, Cameras
from support.estimates import estimate


def flat(*objects):
    """Gray images, one value a view."""
    grays = np.array(objects, np.float32)[..., None, None, None]
    return np.tile(grays, (1, 1, 2, 5, 3))


def heldout_of(images):
    b, v = images.shape[:2]
    cameras = Cameras(camera_to_world=jnp.zeros((b, v, 4, 4)), intrinsics=jnp.zeros((b, v, 3, 3)))
    return Batch(images=jnp.asarray(images), cameras=cameras)


def figures_of(images, diffusion=None, lgm=None, vae=None):
    arrays = [None if a is None else jnp.array(a, jnp.float32) for a in (diffusion, lgm, vae)]
    return HeldOutFigures(
        diffusion=arrays[0], lgm=arrays[1], vae=arrays[2], images=jnp.asarray(images)
    )


TRUTH = flat([0.5, 0.6, 0.4], [0.9, 0.8, 0.91])


def test_a_row_has_means_over_objects_of_what_was_found_and_nothing_else():
    losses = [[1, 2, 3, 4, 5, 6], [3, 2, 5, 4, 9, 0]]
    found = Evaluation(figures=figures_of(TRUTH, losses, lgm=[20, 23]), sampled=None)
    assert figures_row(heldout_of(TRUTH), found) == {
        "diffusion_0.2": 2,
        "diffusion_0.7": 2,
        "diffusion_2": 4,
        "diffusion_6": 4,
        "diffusion_20": 7,
        "diffusion_60": 3,
        "lgm_psnr": 21.5,
    }
    found = Evaluation(figures=figures_of(TRUTH, vae=[30, 33]), sampled=None)
    assert figures_row(heldout_of(TRUTH), found) == {"vae_psnr": 31.5}


def test_what_is_sampled_is_judged_by_its_novel_views_beside_the_copied_input():
    views = flat([0, 0.61, 0.3], [0, 0.9, 0.81])  # Off by 0.01, 0.1, 0.1, 0.1.
    renders = flat([1, 0.7, 0.41], [1, 0.79, 3])  # By 0.1, 0.01, 0.01; 3 is clipped to 1: 0.09.
    found = Evaluation(figures=figures_of(TRUTH), sampled=estimate(views, renders))
    row = figures_row(heldout_of(TRUTH), found)
    by_hand = {
        "views_psnr": (40 + 20 + 20 + 20) / 4,
        "renders_psnr": (20 + 40 + 40 - 20 * np.log10(0.09)) / 4,
        "copied_psnr": (20 + 20 + 20 + 40) / 4,
    }
    assert row == pytest.approx(by_hand, abs=1e-3)  # float32 differences of 0.01.


def test_views_that_are_exactly_right_count_100_db():
    round_one = flat([0.5, 0.5, 0.6])
    found = Evaluation(figures=figures_of(round_one), sampled=estimate(round_one, round_one))
    row = figures_row(heldout_of(round_one), found)
    assert row == pytest.approx({"views_psnr": 100, "renders_psnr": 100, "copied_psnr": 60})


def test_a_picture_shows_a_few_objects_by_rows_of_what_was_found_above_the_truth(monkeypatch):
    shown = {}
    monkeypatch.setattr(pictures, "grid", lambda *given: shown.update(given=given) or TRUTH[0, 0])
    truth = np.random.default_rng(0).uniform(size=(6, 3, 2, 5, 3)).astype(np.float32)
    many, heldout = figures_of(truth / 2), heldout_of(truth)
    for sampled, kinds in (
        (None, {"found": truth / 2}),
        (estimate(truth / 3, truth / 4), {"views": truth / 3, "renders": truth / 4}),
    ):
        evaluation_sheet(heldout, Evaluation(figures=many, sampled=sampled))
        rows, labels, columns = shown["given"]
        assert labels == [*kinds, "truth"] * 4
        assert columns == ["input", "view 0", "view 1", "view 2"]
        for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
            i = number // (len(kinds) + 1)
            expected = (kinds | {"truth": truth})[label][i]
            np.testing.assert_allclose(row, [truth[i, 0], *expected], rtol=1e-6)
