"""A disk that is full while a checkpoint is written ends the run with one line."""

import asyncio
import errno
import gc
import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from o3d_jax.files import full_disk
from o3d_jax.files.full_disk import full_disk_named, threads_quiet_about_full_disk

ROOT = Path(__file__).parents[2]

PROGRAM = """
import contextlib, resource, runpy, sys, time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from o3d_jax.errors import exit_on_input_error
from o3d_jax.run.checkpoints import RunCheckpoints
from o3d_jax.types import Frozen, Params, TrainState

config = runpy.run_path("configs/tiny.py")["config"]
draw = np.random.default_rng(0).normal
arrays = {str(i): jnp.asarray(draw(size=(100, 300)), jnp.float32) for i in range(12)}
params = Params(unet=arrays, lgm=())


@exit_on_input_error()
def main(folder, pause):
    checkpoints = RunCheckpoints(Path(folder), config, Frozen(vae=None))
    with contextlib.closing(checkpoints):
        for step in (1, 2, 3):
            state = TrainState(step=jnp.asarray(step), params=params, ema=params, opt_state={})
            jax.block_until_ready(state)
            # No file may have more bytes, as on a disk with no room for more.
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
            checkpoints.save(state, {})
            time.sleep(float(pause))


main(*sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def _as_in_a_new_process(monkeypatch):
    """What stays quiet after a full disk would stay so in the tests that follow."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    yield
    for name in full_disk.LOGGERS:
        logging.getLogger(name).removeFilter(full_disk._is_news)


@pytest.mark.parametrize("pause", [0, 0.5])
def test_a_disk_that_fills_while_threads_write_is_one_line(tmp_path, pause):
    """Each of orbax's and TensorStore's threads would give its traceback before."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "run"), str(pause)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"error: {tmp_path / 'run'}: File too large; make room, or")
    assert ended.stderr.count("\n") == 1, ended.stderr


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_what_orbax_says_of_a_full_disk_becomes_the_system_s_error(number):
    with pytest.raises(OSError, match="a/b") as error, full_disk_named(Path("a/b")):
        raise ValueError(f'RESOURCE_EXHAUSTED: Failed writing "c": {os.strerror(number)} [...]')
    assert error.value.errno == number


def test_threads_are_quiet_about_a_full_disk_and_nothing_else(caplog, monkeypatch):
    unraised = []
    monkeypatch.setattr(sys, "unraisablehook", unraised.append)

    def report(error):
        try:
            raise error
        except Exception:
            logging.getLogger("absl").exception("a thread ended")

    full = ValueError(f"Failed: {os.strerror(errno.ENOSPC)}")
    with threads_quiet_about_full_disk():
        with threads_quiet_about_full_disk():
            pass
        report(full)
        assert caplog.messages == []
        report(ValueError("DATA_LOSS"))
        assert caplog.messages == ["a thread ended"]
        for said in ("Event loop is closed", "of the test"):
            sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(said)))
    assert [str(each.exc_value) for each in unraised] == ["of the test"]
    report(full)
    assert len(caplog.messages) == 2


def test_asyncio_is_quiet_about_a_full_disk_to_the_end_and_nothing_else(caplog):
    """It told of errors that nobody had fetched after the block, even after the one line."""

    def forget(error):
        loop = asyncio.new_event_loop()
        loop.create_future().set_exception(error)
        loop.close()
        gc.collect()
        return [each.partition("\n")[0] for each in caplog.messages]

    full = ValueError(f"Failed: {os.strerror(errno.EFBIG)}")
    with threads_quiet_about_full_disk():
        assert forget(full) == []
        with pytest.raises(OSError), full_disk_named(Path("a/b")):
            raise full
    assert forget(full) == []
    assert forget(ValueError("DATA_LOSS")) == ["Future exception was never retrieved"]
