"""Two real processes that share arrays save them together, and agree on what is damaged."""

import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_two_processes_save_and_restore_and_step_back_together(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = str(ROOT / "tests" / "support" / "one_of_two.py")
    runs = [
        subprocess.Popen(
            [sys.executable, script, index, port, "configs/tiny.py", str(tmp_path)],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": ""},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in ("0", "1")
    ]
    try:
        said = [run.communicate(timeout=120)[1] for run in runs]
    finally:  # One may wait for the other for ever.
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], said
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"2", "4", "4.damaged"}
