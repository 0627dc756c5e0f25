"""Golden scenes of a slow float64 rasterizer, and the tool that checks them."""

import pathlib
import sys

import jax
import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))

import check  # noqa: E402


@pytest.mark.parametrize(
    ("name", "culling", "dtype"),
    [
        ("rawquat_big_48", "exact", np.float32),
        ("offcentre_50x37", "inria", np.float64),  # Two views; unequal focal lengths.
    ],
)
def test_render_and_its_gradients_match_golden(name, culling, dtype):
    file = GOLDEN / "splat" / f"{name}.npz"
    jax.config.update("jax_enable_x64", dtype is np.float64)
    try:
        rows = list(check.splat_rows(file, np.load(file), culling, dtype))
    finally:
        jax.config.update("jax_enable_x64", False)
    assert len(rows) == (8 if dtype is np.float64 else 11)
    assert all(row.passed for row in rows), "\n".join(map(str, rows))


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted((GOLDEN / "splat").glob("*.npz")), ids=lambda f: f.stem)
def test_golden_passes_in_both_precisions_and_both_culling_modes(file):
    assert check.main([str(file)]) == 0


def one_row(error, limit=check.SAFE32):
    return lambda file, arrays: [check.compare("toy", "x", arrays["x"] + error, arrays["x"], limit)]


@pytest.mark.parametrize(
    ("error", "status", "word"), [(4e-5, 0, "PASS"), (6e-5, 1, "FAIL"), (np.nan, 1, "FAIL")]
)
def test_check_prints_a_verdict_and_exits_with_it(
    tmp_path, monkeypatch, capsys, error, status, word
):
    np.savez(tmp_path / "a.npz", kind="toy", x=np.ones((2, 3)))
    monkeypatch.setitem(check.KINDS, "toy", one_row(error))
    assert check.main([str(tmp_path / "a.npz")]) == status
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].startswith("toy ") and f"  {word}\n" in printed
    assert check.SAFE32.source in printed


def test_check_holds_gradients_to_their_relative_error():
    golden = np.array([300.0, 400.0])
    ours = golden + np.array([0.0, 0.005])  # 1e-5 of the norm.
    row = check.compare("toy", "x", ours, golden, check.GRADIENT32)
    assert row.passed and row.relative == pytest.approx(1e-5) and row.largest == pytest.approx(5e-3)
    assert not check.compare("toy", "x", ours, golden, check.GRADIENT64).passed


@pytest.mark.parametrize("content", ["kind", "arrays", "text", "nothing"])
def test_check_refuses_what_it_does_not_know_in_one_line(tmp_path, capsys, content):
    file = tmp_path / "a.npz"
    if content == "kind":
        np.savez(file, kind="teapot")
    elif content == "arrays":
        np.savez(file, x=np.ones(3))
    elif content == "text":
        file.write_text("not an archive")
    assert check.main([str(file)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"{file}: ") and message.count("\n") == 1
    assert ("teapot" in message) == (content == "kind")
