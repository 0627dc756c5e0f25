import ast
from pathlib import Path

import numpy as np
import pytest
from small_sets import OBJECTS, small_config, white_orbits

from o3d_jax.data import synthetic, synthetic_orbits
from o3d_jax.data.synthetic_orbits import HELDOUT_SEED, SyntheticOrbits


def test_a_second_run_reads_the_cache_and_renders_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_orbits, "SHARD", 5)  # Twelve objects: the last file is not full.
    expected = white_orbits(small_config())
    config = small_config(cache=tmp_path / "orbits", workers=2)
    np.testing.assert_array_equal(white_orbits(config), expected)
    assert len(list((tmp_path / "orbits").iterdir())) == 3

    def refuse(*args, **kwargs):
        raise AssertionError("rendered again")

    monkeypatch.setattr(synthetic_orbits, "render_orbit", refuse)
    np.testing.assert_array_equal(white_orbits(config), expected)
    with pytest.raises(AssertionError, match="again"):
        # Another elevation is another set.
        SyntheticOrbits(small_config(cache=tmp_path / "orbits", elevation=(0.0, 1.0)))


def test_the_cache_is_another_one_when_the_generator_changes(tmp_path, monkeypatch):
    config = small_config(objects=2, cache=tmp_path)
    SyntheticOrbits(config)
    read = synthetic_orbits.Path.read_bytes

    def edited(path):
        return read(path) + (b"#" if path.name == "tracing.py" else b"")

    monkeypatch.setattr(synthetic_orbits.Path, "read_bytes", edited)
    SyntheticOrbits(config)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_broken_off_run_keeps_whole_files_and_leaves_no_partial_one(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_orbits, "SHARD", 5)
    config = small_config(cache=tmp_path)
    whole = synthetic_orbits.render_orbit

    def breaks(seed, *args, **kwargs):
        if seed == 5 + 7:
            raise KeyboardInterrupt
        return whole(seed, *args, **kwargs)

    monkeypatch.setattr(synthetic_orbits, "render_orbit", breaks)
    with pytest.raises(KeyboardInterrupt):
        SyntheticOrbits(config)
    assert [path.name.split("-", 3)[3] for path in tmp_path.iterdir()] == ["5-9.npy"]
    monkeypatch.setattr(synthetic_orbits, "render_orbit", whole)
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


def test_every_file_that_the_generator_imports_names_the_cache():
    """Else an edited generator would silently train on what the old one drew."""
    folder = Path(synthetic.__file__).parent
    waiting, found = ["synthetic.py"], {"__init__.py"}
    while waiting:
        name = waiting.pop()
        found.add(name)
        for node in ast.walk(ast.parse((folder / name).read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "o3d_jax.data":
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "o3d_jax.data."
            ):
                names = [str(node.module).split(".")[2]]
            else:
                continue
            waiting += [f"{n}.py" for n in names if f"{n}.py" not in found]
    assert set(synthetic_orbits.GENERATOR) == found
