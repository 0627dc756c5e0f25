"""Two processes of four devices each train as one of eight does, and end together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from o3d_jax.errors import InputError
from o3d_jax.parallel.processes import _check_found_all
from o3d_jax.weights.checkpoint import load_model
from support.runs import Runs, final, toy_runs

# Toys are small: everything from 90 elements on is shared out, also between the processes.
SHARED = ("--train.zero", "3", "--train.smallest-shared", "90")


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start_two(runs, name, *options, **more):
    launch = ("--launch.coordinator", f"localhost:{free_port()}", "--launch.processes", "2")
    each = [(*launch, "--launch.process-id", str(i), *SHARED, *options) for i in range(2)]
    return [runs.start(name, *mine, devices=4, **more) for mine in each]


def ends(processes):
    said = [process.communicate(timeout=900)[0] for process in processes]
    return [process.returncode for process in processes], said


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """With a run `one` of one process with eight devices, and `two` of two with four each."""
    runs = toy_runs(tmp_path_factory.mktemp("runs"))
    ended = runs.run("one", *SHARED, devices=8)
    assert ended.status == 0, ended.said
    statuses, said = ends(start_two(runs, "two"))
    assert statuses == [0, 0], said
    (runs.folder / "said.json").write_text(json.dumps(said))
    return runs


def test_two_processes_end_in_the_state_of_one(runs):
    (one, position), (two, other_position) = final(runs, "one"), final(runs, "two")
    assert position == other_position

    def check(found, expected):
        # The same sums, but gloo adds shares of devices in another order than one process does.
        if found.dtype.kind == "f":
            scale = np.abs(expected).max()
            assert np.mean(np.abs(found - expected) > 1e-3 * scale) < 0.02
        else:
            np.testing.assert_array_equal(found, expected)

    assert len(jax.tree.leaves(two)) > 20
    jax.tree.map(check, two, one)
    alone, together = runs.rows("one"), runs.rows("two")
    assert [row["step"] for row in together] == [row["step"] for row in alone]
    for a, b in zip(alone, together, strict=True):
        assert b["log_sigma_50"] == a["log_sigma_50"]  # The same draws for the same objects.
        np.testing.assert_allclose(b["total"], a["total"], rtol=1e-3)
    jax.tree.map(check, *(load_model(runs.folder / n / "model").weights for n in ("two", "one")))


def test_process_0_alone_prints_and_shows_who_takes_part(runs):
    first, second = json.loads((runs.folder / "said.json").read_text())
    assert "step 6 " in first and "done:" in first
    assert "step " not in second and "done" not in second
    assert f"process 0: {socket.gethostname()}, 4 devices\nprocess 1: " in first
    banner = (runs.folder / "two" / "banner.txt").read_text()
    assert banner.count(socket.gethostname()) == 2 and "data 1 x fsdp 8" in banner


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one(runs):
    longer = Runs(runs.folder / "longer")
    for name in ("vae", "one", "two"):
        shutil.copytree(runs.folder / name, longer.folder / name)
    for name in ("one", "two"):
        ended = longer.run(name, *SHARED, devices=4, steps=9)
        assert ended.status == 0 and "resumed at step 6" in ended.said, ended.said
    # The states differ by the order of sums in the first six steps.
    losses = [[row["total"] for row in longer.rows(name)] for name in ("one", "two")]
    assert len(losses[0]) == 9
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def signalled(runs, name, which):
    """Starts two, signals some of them when steps are logged; statuses and outputs."""
    processes = start_two(runs, name, steps=400)
    end = time.monotonic() + 600
    while len(runs.rows(name)) < 3 and time.monotonic() < end:
        assert all(process.poll() is None for process in processes), ends(processes)
        time.sleep(0.05)
    for i in which:
        processes[i].send_signal(signal.SIGTERM)
    return ends(processes)


@pytest.mark.parametrize("which", [pytest.param((0, 1), marks=pytest.mark.slow), (1,)])
def test_a_signal_to_both_or_to_one_process_ends_both_with_a_checkpoint(runs, which):
    name = f"signalled-{len(which)}"
    statuses, said = signalled(runs, name, which)
    assert statuses == [0, 0], said
    saved, logged = runs.steps(name)[-1], runs.rows(name)[-1]["step"]
    assert saved == logged < 400 and saved > 2
    ending = json.loads((runs.folder / name / "exit.json").read_text())
    assert ending["reason"] == "stopped" and ending["step"] == saved


@pytest.mark.slow  # The rules by themselves: `io/test_interruption.py`.
def test_processes_that_stay_in_an_evaluation_end_by_themselves_and_lose_nothing(runs):
    statuses, said = ends(
        start_two(runs, "stuck", "--launch.grace", "1", "--train.eval-every", "4", phase="stuck")
    )
    assert statuses == [0, 0], said
    assert runs.steps("stuck")[-1] == 4
    ending = json.loads((runs.folder / "stuck" / "exit.json").read_text())
    assert ending["reason"] == "stopped" and ending["detail"] == "SIGTERM"
    assert all("SIGTERM: saved" in each for each in said), said


def test_a_process_that_fails_ends_all_at_once(runs):
    processes = start_two(runs, "refusal", phase="refusal")
    end = time.monotonic() + 600
    while all(process.poll() is None for process in processes) and time.monotonic() < end:
        time.sleep(0.05)
    began = time.monotonic()
    statuses, said = ends(processes)
    # The other's sum fails when the connection does. By themselves JAX's barriers wait 300 s; half
    # of that is enough for a busy machine, where 63 have been seen.
    assert time.monotonic() - began < 150
    # JAX aborts it where its last save takes longer than the other's patience; all is told by then.
    assert statuses[1] in (2, -signal.SIGABRT) and statuses[0] != 0, said
    assert "error: of the test" in said[1]


def test_processes_of_another_config_are_told(runs):
    port = free_port()
    launch = ("--launch.coordinator", f"localhost:{port}", "--launch.processes", "2")
    processes = [
        runs.start("differ", *launch, "--launch.process-id", str(i), "--seed", str(i), devices=4)
        for i in range(2)
    ]
    statuses, said = ends(processes)
    assert 2 in statuses and "have another config than process 0" in "".join(said)


ALONE = """
import sys
from o3d_jax.config import LaunchConfig
from o3d_jax.errors import exit_on_input_error
from o3d_jax.parallel.processes import start_processes

address, count, index, timeout = sys.argv[1:]
by_hand = {"coordinator": address, "processes": int(count), "process_id": int(index)}
with exit_on_input_error():
    start_processes(LaunchConfig(**by_hand if address else {}, timeout=int(timeout)))
"""


def start_alone(address, count, index, timeout, **variables):
    """A process that joins others, and nothing else."""
    command = [sys.executable, "-c", ALONE, address, str(count), str(index), str(timeout)]
    path = str(Path(__file__).parents[1])
    environment = {**os.environ, **variables, "PYTHONPATH": path}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stderr=pipe, stdout=pipe, env=environment, text=True)


def line_of(process):
    """What it says, which is to be one line, before it ends with status 2."""
    _, said = process.communicate(timeout=100)
    assert process.returncode == 2 and said.count("\n") == 1, said
    return said


def test_processes_whose_others_never_come_say_who_came_and_what_to_check():
    """By itself JAX aborts process 0 in C++."""
    address = f"localhost:{free_port()}"
    two = [start_alone(address, 3, index, 6) for index in (0, 1)]
    lines = [line_of(process) for process in two]
    assert (
        f"process 0 of 3 has waited 6 s at {address}, and itself counted, 2 of 3 came" in lines[0]
    )
    assert f"process 1 of 3 has waited 6 s at {address}, and not all others came" in lines[1]
    assert all("see that all were started" in line for line in lines)


def test_a_process_0_of_slurm_whose_others_never_come_says_so():
    names = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}
    names |= {"SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "localhost"}
    # JAX takes its port from the number of the job.
    names |= {"SLURM_JOB_ID": str(os.getpid())}
    line = line_of(start_alone("", 0, 0, 2, **names))
    assert "process 0 of 2 has waited 2 s, and itself counted, 1 of 2 came; see that" in line


def test_a_process_without_a_process_0_says_so():
    address = f"localhost:{free_port()}"
    line = line_of(start_alone(address, 2, 1, 2))
    assert f"process 1 found no process 0 at {address} within 2 s" in line


def test_a_process_of_mpirun_that_finds_no_others_says_so(monkeypatch):
    """As under Open MPI 5: each would train by itself in the same folder."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(InputError, match="has started 2 processes, but JAX does not find the oth"):
        _check_found_all()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    _check_found_all()


def test_a_signal_while_a_process_waits_for_the_others_ends_it(runs):
    """It has reached process 0, of which there is only an open port, and JAX waits in C++."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        launch = ("--launch.coordinator", f"localhost:{port}", "--launch.processes", "2")
        process = runs.start("early", *launch, "--launch.process-id", "1", devices=1)
        server.settimeout(300)
        for _ in range(2):  # The look whether it is there, and JAX.
            server.accept()
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=100)
    assert process.returncode == 0 and "SIGTERM: nothing to save" in said
