"""The picture of a training: its curves are the rows of its files."""

import json

import pytest
from PIL import Image

from o3d_jax.run.curves import draw_curves
from support.curves import curves_in


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path):
    """Joint training: two log lines, of which one has skipped steps only; two evaluations, of which
    one sampled."""
    write(
        tmp_path / "log.jsonl",
        {"step": 50, "total": 3.0, "diffusion": 1.0, "gradient_norm": 9.0, "learning_rate": 0.1},
        {"step": 100, "total": None, "diffusion": None, "gradient_norm": None, "kl": 2.0},
        {"step": 150, "total": 2.0, "diffusion": 0.5, "gradient_norm": 8.0, "compilations": 0},
    )
    write(
        tmp_path / "eval.jsonl",
        {"step": 75, "diffusion_0.2": 0.9, "lgm_psnr": 19.0},
        {"step": 150, "diffusion_0.2": 0.8, "lgm_psnr": 20.0, "views_psnr": 17, "copied_psnr": 18},
    )
    return tmp_path


def test_each_panel_has_the_curves_of_its_columns_where_they_say_something(run, monkeypatch):
    drawn = curves_in(monkeypatch)
    draw_curves(run)
    assert drawn == [
        {
            "loss": {"total": ([50, 150], [3, 2]), "diffusion": ([50, 150], [1, 0.5])},
            "held-out diffusion loss": {"diffusion_0.2": ([75, 150], [0.9, 0.8])},
            "held-out PSNR, dB": {
                "lgm_psnr": ([75, 150], [19, 20]),
                "views_psnr": ([150], [17]),
                "copied_psnr": ([150], [18]),
            },
        }
    ]


def test_the_picture_is_a_file_with_a_panel_for_each_kind_of_curve_there_is(run):
    draw_curves(run)
    width = Image.open(run / "curves.png").width
    (run / "eval.jsonl").unlink()
    draw_curves(run)
    assert Image.open(run / "curves.png").width == width / 3


def test_nothing_is_drawn_of_nothing(tmp_path):
    draw_curves(tmp_path)
    assert list(tmp_path.iterdir()) == []
