"""The command `o3d`: which module answers, how fast, and how it ends."""

import os
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from o3d_jax.__main__ import COMMANDS
from o3d_jax.__main__ import main as o3d
from o3d_jax.errors import exit_on_input_error
from o3d_jax.places import CONFIGS, SCRIPTS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_says_how_it_is_used(name, capsys):
    try:
        o3d([*name.split(), "--help"])
    except SystemExit as stop:
        assert not stop.code
    assert f"o3d {name}" in capsys.readouterr().out


def test_each_file_in_commands_is_a_command():
    folder = ROOT / "o3d_jax" / "commands"
    files = (p.relative_to(folder).with_suffix("") for p in folder.rglob("*.py"))
    names = {" ".join(f.parts).replace("_", "-") for f in files if f.name != "__init__"}
    assert names | {"sample", "train"} == COMMANDS.keys()


MEASURED = """
import sys, time
start = time.process_time()
from o3d_jax.__main__ import main
try:
    main({arguments})
finally:
    seconds = time.process_time() - start
    loaded = {{"jax", "numpy", "orbax"}} & set(sys.modules)
    sys.stderr.write(f"{{seconds}} {{len(loaded)}}")
"""


@pytest.mark.parametrize("arguments", [["--help"], ["data", "--help"], ["weights"], ["no"]])
def test_commands_are_listed_within_half_a_second_and_without_jax(arguments):
    code = MEASURED.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    seconds, loaded = done.stderr.splitlines()[-1].split()
    assert float(seconds) < 0.5 and int(loaded) == 0  # Measured: 0.20 s; of the processor.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sampel", "no command `o3d sampel`; the nearest is `o3d sample`"),
        ("data rendr", "no command `o3d data rendr`; the nearest is `o3d data render`"),
        ("convert svd", "no command `o3d convert`; the nearest is `o3d weights convert`"),
        ("data", "no command after `o3d data`; give one of: render, inspect, build"),
        ("", "no command after `o3d`; give one of: sample, train"),
        ("weights convert sdv a b", "nearest is 'svd'"),
        ("sample --orbit-siz 9", "did you mean --orbit-size?"),
        ("sample --overwrit", "did you mean --overwrite?"),
        ("train tiny --train.stepz 3", "did you mean --train.steps, "),
        ("train --name x", "no config file; give one first, as `o3d train nano`"),
        ("train tinny", "one of nano, ouroboros3d, released, tiny; did you mean tiny?"),
        ("plan", "no config; give one first, as `o3d plan nano --topology v5e:4x4`"),
        ("data build a", "Missing from o3d data build: PATH Folder for datasets"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_nearest_and_status_2(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        o3d(words.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert said in error


@pytest.mark.parametrize("arguments", [["--help"], ["weights", "dump-script"]])
def test_output_that_nobody_reads_ends_the_command_without_a_word(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "o3d_jax", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == "" and done.returncode == 141  # As a shell says it of SIGPIPE.


def test_another_broken_pipe_is_a_fault():
    with pytest.raises(BrokenPipeError), exit_on_input_error():
        raise BrokenPipeError("of a socket")


def test_the_dump_script_is_printed_as_it_is(capsys):
    o3d(["weights", "dump-script"])
    source = ROOT / "o3d_jax" / "weights" / "pytorch" / "dump_script.py"
    assert capsys.readouterr().out == source.read_text()


def test_train_and_sample_are_the_scripts_at_the_top():
    assert SCRIPTS == ROOT and CONFIGS == ROOT / "configs"
    for name in ("train", "sample"):
        with pytest.raises(SystemExit):
            o3d([name, "--nothing"])
        module = sys.modules[f"o3d_jax.scripts.{name}"]
        assert module.__file__ == str(ROOT / f"{name}.py")


def test_a_wheel_has_configs_and_scripts_inside_of_the_package(tmp_path):
    """As `pyproject.toml` puts them, and where `places` then finds them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["packages"]["find"]["include"] == ["o3d_jax*"]
    folders = settings["package-dir"]
    sources = {
        ROOT / folders[module.rpartition(".")[0]] / f"{module.rpartition('.')[2]}.py": module
        for module in settings["py-modules"]
    }
    assert set(sources) == {*CONFIGS.glob("*.py"), ROOT / "train.py", ROOT / "sample.py"}
    for source, module in sources.items():
        target = tmp_path / f"{module.replace('.', '/')}.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    shutil.copy(ROOT / "o3d_jax" / "places.py", tmp_path / "o3d_jax")
    found = runpy.run_path(str(tmp_path / "o3d_jax" / "places.py"))
    assert {p.name for p in found["CONFIGS"].iterdir()} == {p.name for p in CONFIGS.glob("*.py")}
    assert {p.name for p in found["SCRIPTS"].iterdir()} == {"train.py", "sample.py"}
    assert [p.name for p in tmp_path.iterdir()] == ["o3d_jax"]  # Nothing else at the top.
