"""Contradictions in a config are refused when it is made."""

from dataclasses import replace
from pathlib import Path

import pytest

from o3d_jax.config import DataConfig, TrainConfig


def test_a_mirror_needs_whole_circles_of_evenly_spaced_views(tiny):
    """Else the views of a mirrored orbit, in any order, are at other azimuths than all others."""
    with pytest.raises(ValueError, match="data.mirror needs data.orbit_frames every_second"):
        DataConfig(mirror=True, orbit_frames="linspace")
    DataConfig(mirror=False, orbit_frames="linspace")
    half = replace(tiny.data, mirror=True, frames_per_orbit=16)
    with pytest.raises(ValueError, match="data.frames_per_orbit 16 to be twice model.num_views 4:"):
        replace(tiny, data=half)
    replace(tiny, data=replace(half, frames_per_orbit=8))


def test_sampling_is_due_at_some_of_the_evaluations():
    with pytest.raises(
        ValueError, match="sample_every 500 is not a multiple of train.eval_every 2"
    ):
        TrainConfig(eval_every=200, sample_every=500)
    TrainConfig(eval_every=200, sample_every=600)
    TrainConfig(eval_every=200, sample_every=0)


def test_each_part_of_a_training_has_a_folder_in_that_of_the_whole(tiny):
    def folder(part):
        return replace(tiny, run_dir=Path("r"), train=replace(tiny.train, part=part)).folder

    assert folder("joint") == Path("r/tiny")
    assert {folder(part) for part in ("vae", "lgm", "unet")} == {
        Path("r/tiny/vae"),
        Path("r/tiny/lgm"),
        Path("r/tiny/unet"),
    }
