"""sample.py with toy networks; as a script, `toy_sampling.py LEVEL ARGUMENTS...`, to be killed.

It dies by SIGKILL half way through writing the file of LEVEL. ARGUMENTS are sample.py's.
"""

import contextlib
import os
import runpy
import signal
import sys
from pathlib import Path

import numpy as np

from o3d_jax.cli import read_config
from o3d_jax.sampling import kept, loop
from o3d_jax.weights.checkpoint import Weights, save_model
from support.toy_networks import toy_system

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "configs" / "tiny.py"


def toy():
    return toy_system(read_config(MODEL, ["--sample.levels", "5"]))


def save_toy(folder):
    """A checkpoint whose networks `use_toys` puts in place of the real ones."""
    system = toy()
    save_model(folder, system.config, Weights(params=system.params, frozen=system.frozen))
    return folder


def use_toys(patch=setattr):
    networks = toy().networks
    patch(loop, "build_networks", lambda model: networks)
    patch(loop, "check_complete", lambda folder, parts: None)


def die_while_writing(level):
    real = kept.written_whole

    @contextlib.contextmanager
    def written(path):
        with real(path) as temporary:
            yield temporary
            if path.name == f"{level:02}.npz":
                temporary.write_bytes(temporary.read_bytes()[:1000])
                os.kill(os.getpid(), signal.SIGKILL)

    kept.written_whole = written


def picture(folder):
    """A file with an object on white, off the middle."""
    from o3d_jax.files.images import save_png

    pixels = np.ones((31, 43, 3), np.float32)
    pixels[5:26, 8:22] = (0.7, 0.2, 0.1)
    save_png(folder / "brick.png", pixels)
    return folder / "brick.png"


if __name__ == "__main__":
    which, *arguments = sys.argv[1:]
    use_toys()
    die_while_writing(int(which))
    main = runpy.run_path(str(ROOT / "sample.py"), run_name="sample_script")["main"]
    main(arguments)
