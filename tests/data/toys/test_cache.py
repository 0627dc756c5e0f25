import numpy as np
import pytest

from o3d_jax.data.toys import cache
from o3d_jax.data.toys.cache import HELDOUT_SEED, SyntheticOrbits
from support.small_sets import OBJECTS, small_config, white_orbits


def test_a_second_run_reads_the_cache_and_renders_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 5)  # Twelve objects: the last file is not full.
    expected = white_orbits(small_config())
    config = small_config(cache=tmp_path / "orbits", workers=2)
    np.testing.assert_array_equal(white_orbits(config), expected)
    assert len(list((tmp_path / "orbits").iterdir())) == 3

    def refuse(*args, **kwargs):
        raise AssertionError("rendered again")

    monkeypatch.setattr(cache, "render_orbit", refuse)
    np.testing.assert_array_equal(white_orbits(config), expected)
    with pytest.raises(AssertionError, match="again"):
        # Another elevation is another set.
        SyntheticOrbits(small_config(cache=tmp_path / "orbits", elevation=(0.0, 1.0)))


def test_the_cache_is_another_one_for_another_version_of_the_generator(tmp_path, monkeypatch):
    config = small_config(objects=2, cache=tmp_path)
    SyntheticOrbits(config)
    monkeypatch.setattr(cache, "TOYS_VERSION", cache.TOYS_VERSION + 1)
    SyntheticOrbits(config)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_broken_off_run_keeps_whole_files_and_leaves_no_partial_one(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 5)
    config = small_config(cache=tmp_path)
    whole = cache.render_orbit

    def breaks(seed, *args, **kwargs):
        if seed == 5 + 7:
            raise KeyboardInterrupt
        return whole(seed, *args, **kwargs)

    monkeypatch.setattr(cache, "render_orbit", breaks)
    with pytest.raises(KeyboardInterrupt):
        SyntheticOrbits(config)
    assert [path.name.split("-", 3)[3] for path in tmp_path.iterdir()] == ["5-9.npy"]
    monkeypatch.setattr(cache, "render_orbit", whole)
    np.testing.assert_array_equal(white_orbits(config), white_orbits(small_config()))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"seed": HELDOUT_SEED - OBJECTS + 1}, "held out"),
        ({"seed": -1}, "data.seed -1"),
        ({"objects": 0}, "data.objects 0"),
        ({"workers": 0}, "data.workers 0"),
        ({"elevation": (30.0, -5.0)}, "elevation"),
        ({"objects": 2**29}, "data.cache"),
    ],
)
def test_impossible_training_sets_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        SyntheticOrbits(small_config(**data))


def test_training_may_go_up_to_the_heldout_seeds():
    assert len(SyntheticOrbits(small_config(seed=HELDOUT_SEED - OBJECTS))) == OBJECTS
