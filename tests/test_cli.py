"""The command line: where a config's values come from, and what is said of mistakes."""

from pathlib import Path

import pytest

from o3d_jax.cli import explained_config, read_config
from o3d_jax.errors import InputError
from o3d_jax.places import CONFIGS

FILE = """
from pathlib import Path
from o3d_jax.config import Config, DataConfig, OptimConfig
optim = OptimConfig(learning_rate=1e-3, weight_decay=0.01, warmup_steps=7)
config = Config(name="mine", optim=optim, data=DataConfig(cache=Path("orbits")))
"""


def test_each_value_that_is_no_default_has_the_source_that_chose_it(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    overrides = ["--run-dir", str(tmp_path), "--train.steps", "30000", "--optim.warmup-steps", "0"]
    found = explained_config(path, [*overrides, "--data.seed", "3"])
    assert found.config.data.seed == 3 and found.config.data.cache == Path("orbits")
    settings = {s.field: (s.value, s.source) for s in found.settings}
    line = "command line"
    assert settings == {
        "name": ("'mine'", str(path)),
        "optim.learning-rate": ("0.001", str(path)),
        "data.cache": ("'orbits'", str(path)),
        "data.seed": ("3", line),
        "run-dir": (repr(str(tmp_path)), line),
        "optim.warmup-steps": ("0", line),  # Back to the default, which the file had left.
    }  # Neither weight_decay nor steps: whoever wrote them, they are the default's.


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["--optim.learning-rat", "1"], "learning-rat, 1; did you mean --optim.learning-rate?"),
        (["--optim.learning-rate", "fast"], "could not convert string to float: 'fast'$"),
        (["--nothing.like-it", "1"], "Unrecognized options: --nothing.like-it, 1$"),
        (["stray"], "Unrecognized options: stray$"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_with_what_was_meant(tmp_path, overrides, said):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    with pytest.raises(InputError, match=said) as error:
        read_config(path, ["--run-dir", str(tmp_path), *overrides])
    assert "\n" not in str(error.value)


def test_a_config_is_found_by_its_name_and_by_its_path_and_ones_own_comes_first(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    found = explained_config(Path("nano"), ["--train.steps", "7"])
    by_path = read_config(CONFIGS / "nano.py", ["--train.steps", "7"])
    assert found.config == by_path and found.config.name == "nano"
    assert {s.source for s in found.settings} == {str(CONFIGS / "nano.py"), "command line"}
    Path("nano").write_text(FILE)
    assert read_config(Path("nano"), []).name == "mine"
    with pytest.raises(InputError, match="no config file configs/nano.py; .*did you mean nano[?]"):
        read_config(Path("configs/nano.py"), [])


def test_a_mistake_in_a_config_file_names_the_nearest_field(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE.replace("warmup_steps", "warmup_step"))
    with pytest.raises(InputError, match="the nearest field is 'warmup_steps'"):
        read_config(path, [])


@pytest.mark.parametrize(
    "program",
    ["1 / 0", "{}[3]", "assert False", "open('/none')", "[" * 3000, "'\\n'.x", "raise OSError"],
)
def test_a_config_file_that_fails_in_any_way_is_one_line_that_names_it(tmp_path, program):
    path = tmp_path / "mine.py"
    path.write_text(program)
    with pytest.raises(InputError, match=r"mine\.py: \S") as error:
        read_config(path, [])
    assert "\n" not in str(error.value)
