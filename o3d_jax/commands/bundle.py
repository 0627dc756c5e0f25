"""Makes a model small enough to ship: `python -m o3d_jax.commands.bundle runs/nano/model OUT`.

Parameters in float16: half the size, and 3 decimal digits are more than training settles.
"""

import dataclasses
import sys
from pathlib import Path

from o3d_jax.config import DataConfig
from o3d_jax.errors import exit_on_input_error
from o3d_jax.weights.checkpoint import load_model, save_model


@exit_on_input_error()
def main() -> None:
    """Reads one model and writes another."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    model = load_model(source)
    data = dataclasses.replace(model.config.data, cache=DataConfig().cache)
    config = dataclasses.replace(model.config, data=data)
    save_model(target, config, model.weights, dtype="float16")
    size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
    sys.stdout.write(f"{target}: {size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main()
