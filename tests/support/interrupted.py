"""What is interrupted in `test_interruption.py`, as `interrupted.py KIND FOLDER`."""

import contextlib
import errno
import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import jax

from o3d_jax.run.interruption import Interruption

KIND, FOLDER = sys.argv[1], Path(sys.argv[2])


def say(text):
    sys.stdout.write(text + "\n")


def note(name):
    with (FOLDER / name).open("a") as file:
        file.write("x")


def save():
    note("begun")
    time.sleep(0.3)
    if KIND == "save fails":
        raise KeyError("of the test")
    if KIND == "disk is full":
        raise OSError(errno.ENOSPC, "No space left on device", "here")
    note("saved")


def blocked():
    """Many seconds in C, as in a compilation: Python's handlers do not run, other threads do."""
    note("ready")
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 500_000_000)


def waits_until(fact):
    note("ready")
    end = time.monotonic() + 120
    while not fact() and time.monotonic() < end:
        time.sleep(0.01)


def main():
    with Interruption(say) as interruption:
        interruption.patience = 0.5 if KIND.startswith("not alone") else None
        if KIND in ("in C", "save fails", "disk is full"):
            with interruption.unattended(save):
                blocked()
        elif KIND == "nothing to save":
            with interruption.unattended(None):
                blocked()
        elif KIND == "came before":
            os.kill(os.getpid(), signal.SIGTERM)
            with interruption.unattended(save):
                blocked()
        elif KIND == "ends while it saves":
            with interruption.unattended(save):
                waits_until((FOLDER / "begun").exists)
        elif KIND == "inner block":
            with interruption.unattended(save):
                with interruption.unattended(None):
                    pass
                blocked()
        elif KIND == "second Ctrl-C":
            with contextlib.suppress(KeyboardInterrupt):
                waits_until(lambda: interruption.requested)
                note("requested")
                waits_until(lambda: False)
        elif KIND == "not alone":
            with interruption.unattended(save):
                waits_until(lambda: interruption.requested)
            time.sleep(1)  # Longer than the patience, but the loop may save now.
        elif KIND == "not alone, for long":
            with interruption.unattended(save):
                blocked()
        elif KIND == "not alone, others gone":
            with interruption.unattended(save):
                waits_until(lambda: interruption.requested)
                raise jax.errors.JaxRuntimeError("Connection closed by peer")
        elif KIND == "not alone, out late":
            interruption.linger = 60
            with interruption.unattended(save):
                waits_until(lambda: interruption.requested)
                time.sleep(0.6)
        elif KIND == "not alone, later for long":
            os.kill(os.getpid(), signal.SIGTERM)
            with interruption.unattended(None):
                pass
            with interruption.unattended(save):
                blocked()
        else:
            waits_until(lambda: interruption.requested)
        note("after")
        say(f"{interruption.name} {interruption.status}")
    raise SystemExit(interruption.status)


main()
