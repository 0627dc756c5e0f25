"""A signal ends a run at its next chance, or at once where the run says so, after saving once."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from o3d_jax.run.interruption import Interruption

ROOT = Path(__file__).parents[2]
MINE = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def run(kind, folder, *signals, pause=0.0, **options):
    """Sends the signals once the process is ready."""
    script = str(ROOT / "tests" / "support" / "interrupted.py")
    process = subprocess.Popen(
        [sys.executable, script, kind, str(folder)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    while signals and not (folder / "ready").exists() and process.poll() is None:
        time.sleep(0.01)
    for number in signals:
        process.send_signal(number)
        time.sleep(pause)
    began = time.monotonic()
    out, err = process.communicate(timeout=200)
    assert time.monotonic() - began < 60  # It would go on for twice that; seconds if all is quiet.
    return process.returncode, out, err


def written(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != "ready"}


STATUS = [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGINT, 130)]
ONCE = {"begun": "x", "saved": "x"}


@pytest.mark.parametrize(("number", "status"), STATUS)
def test_a_signal_while_the_main_thread_is_in_c_saves_and_ends_the_process(
    tmp_path, number, status
):
    code, out, err = run("in C", tmp_path, number)
    assert (code, err) == (status, "")
    assert out == f"{number.name}: saved; the same command goes on\n"
    assert written(tmp_path) == ONCE


def test_several_signals_save_once_and_the_first_decides_the_status(tmp_path):
    code, out, _ = run("in C", tmp_path, signal.SIGTERM, *MINE, *MINE, pause=0.02)
    assert code == 0 and out.startswith("SIGTERM") and written(tmp_path) == ONCE


def test_where_nothing_is_to_be_saved_the_process_just_ends(tmp_path):
    code, out, _ = run("nothing to save", tmp_path, signal.SIGTERM)
    assert code == 0 and "nothing to save" in out and written(tmp_path) == {}


def test_a_signal_that_came_before_is_honored_on_entering(tmp_path):
    assert run("came before", tmp_path)[0] == 0
    assert written(tmp_path) == ONCE


def test_the_main_thread_does_not_go_on_while_another_saves(tmp_path):
    assert run("ends while it saves", tmp_path, signal.SIGTERM)[0] == 0
    assert written(tmp_path) == ONCE  # And no "after".


def test_an_inner_block_does_not_end_the_outer(tmp_path):
    assert run("inner block", tmp_path, signal.SIGTERM)[0] == 0
    assert written(tmp_path) == ONCE


@pytest.mark.parametrize(("number", "status"), STATUS)
def test_elsewhere_a_signal_only_asks(tmp_path, number, status):
    code, out, _ = run("elsewhere", tmp_path, number)
    assert code == status and out == f"{number.name} {status}\n"
    assert written(tmp_path) == {"after": "x"}


def test_a_second_ctrl_c_raises(tmp_path):
    code, out, _ = run("second Ctrl-C", tmp_path, signal.SIGINT, signal.SIGINT, pause=0.5)
    assert code == 130 and written(tmp_path) == {"requested": "x", "after": "x"}


def test_with_other_processes_a_signal_only_asks_everywhere(tmp_path):
    code, out, _ = run("not alone", tmp_path, signal.SIGTERM)
    assert code == 0 and out == "SIGTERM 0\n" and written(tmp_path) == {"after": "x"}


@pytest.mark.parametrize("where", ["for long", "later for long", "others gone", "out late"])
def test_with_other_processes_one_ends_by_itself_where_it_or_others_stayed_too_long(
    tmp_path, where
):
    kind = f"not alone, {where}"
    code, out, _ = run(kind, tmp_path, *[signal.SIGTERM] * (where != "later for long"))
    # It was saved before, and is not now.
    assert code == 0 and "SIGTERM: saved" in out and written(tmp_path) == {}
    assert ("Connection closed by peer" in out) == (where == "others gone")


@pytest.mark.parametrize(
    ("kind", "status", "said", "lines"),
    [("save fails", 1, "KeyError: 'of the test'", 5), ("disk is full", 2, "error: here: No sp", 1)],
)
def test_a_save_that_fails_is_told_and_the_status_says_so(tmp_path, kind, status, said, lines):
    code, out, err = run(kind, tmp_path, signal.SIGTERM)
    assert (code, out) == (status, "") and said in err
    assert err.count("\n") >= lines and (lines > 1 or err.count("\n") == 1)


def test_signals_that_are_ignored_stay_so(tmp_path):
    def ignore():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    code, out, _ = run(
        "in C", tmp_path, signal.SIGINT, signal.SIGTERM, pause=0.1, preexec_fn=ignore
    )
    assert code == 0 and out.startswith("SIGTERM")


def test_what_handled_signals_before_does_so_again():
    before = [signal.getsignal(number) for number in MINE]
    threads = threading.active_count()
    with Interruption(pytest.fail) as interruption:
        assert [signal.getsignal(number) for number in MINE] != before
        assert not interruption.requested and interruption.status == 0
    assert [signal.getsignal(number) for number in MINE] == before
    assert signal.set_wakeup_fd(-1) == -1
    time.sleep(0.1)
    assert threading.active_count() == threads


def test_in_another_thread_nothing_is_handled():
    before = [signal.getsignal(number) for number in MINE]
    seen = []

    def enter():
        with Interruption(pytest.fail) as interruption, interruption.unattended(pytest.fail):
            seen.append([signal.getsignal(number) for number in MINE] == before)
            seen.append(interruption.requested)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [True, False]
