"""Golden scenes of a slow float64 rasterizer."""

import pathlib
import sys

import jax
import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))

import check  # noqa: E402
import splatting  # noqa: E402


@pytest.mark.parametrize(
    ("name", "culling", "dtype"),
    [
        ("rawquat_big_48", "exact", np.float32),
        ("offcenter_50x37", "inria", np.float64),  # Two views; unequal focal lengths.
    ],
)
def test_render_and_its_gradients_match_golden(name, culling, dtype):
    file = GOLDEN / "splat" / f"{name}.npz"
    jax.config.update("jax_enable_x64", dtype is np.float64)
    try:
        rows = list(splatting.splat_rows(file, np.load(file), culling, dtype))
    finally:
        jax.config.update("jax_enable_x64", False)
    assert len(rows) == (8 if dtype is np.float64 else 11)
    assert all(row.passed for row in rows), "\n".join(map(str, rows))


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted((GOLDEN / "splat").glob("*.npz")), ids=lambda f: f.stem)
def test_golden_passes_in_both_precisions_and_both_culling_modes(file):
    assert check.main([str(file)]) == 0
