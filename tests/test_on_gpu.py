"""`benchmarks/on_gpu.py` keeps to its time. Its parts are tried with `--toy`, by hand."""

import importlib.util
import shutil
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "on_gpu.py"

TRAIN = """
import signal, subprocess, sys, time
from pathlib import Path

def save(*_):
    Path("saved").touch()
    sys.exit()

signal.signal(signal.SIGTERM, save)
worker = "import time\\nwhile True: open('beats', 'a').write('.'); time.sleep(0.02)"
subprocess.Popen([sys.executable, "-c", worker])
time.sleep(300)
"""
"""A train.py that saves when it is told to stop, and whose worker is told nothing."""


@pytest.fixture
def on_gpu(tmp_path, monkeypatch):
    """The script, in a checkout with another train.py."""
    (tmp_path / "benchmarks").mkdir()
    copy = Path(shutil.copy(SCRIPT, tmp_path / "benchmarks"))
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.setenv("O3D_TRAIN_OPTIONS", '["nano"]')
    monkeypatch.setattr("sys.path", [])  # It puts its checkout there.
    spec = importlib.util.spec_from_file_location("on_gpu_copy", copy)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_training_whose_time_is_over_saves_and_leaves_nothing_at_work(on_gpu, tmp_path):
    began = time.monotonic()
    assert on_gpu.run_part("train", tmp_path, 3.0, toy=False) == "stopped after 3 s"
    assert time.monotonic() - began < 3 + on_gpu.GRACE
    assert (tmp_path / "saved").is_file(), (tmp_path / "train.log").read_text()
    beats = (tmp_path / "beats").stat().st_size
    time.sleep(0.3)
    assert (tmp_path / "beats").stat().st_size == beats > 0


def test_a_part_that_fails_is_told_with_its_log(on_gpu, tmp_path):
    (tmp_path / "train.py").write_text("raise SystemExit(7)")
    assert on_gpu.run_part("train", tmp_path, 60.0, toy=False) == (
        "failed with status 7, see train.log"
    )
