"""Dumps written by hand, as weights/pytorch/dump_script.py does."""

import json
from pathlib import Path

import numpy as np


def write_dump(folder: Path, network: str, inputs, outputs=(), stride: int = 1) -> Path:
    """`outputs` are (name, array) in order of execution."""
    folder.mkdir()
    order = []
    for i, (name, array) in enumerate(outputs):
        file = f"{i}.npy"
        np.save(folder / file, np.asarray(array, np.float32).reshape(-1)[::stride])
        order.append({"name": name, "file": file, "shape": array.shape, "stride": stride})
    for name, array in inputs.items():
        np.save(folder / f"input.{name}.npy", np.asarray(array, np.float32))
    about = {"network": network, "inputs": list(inputs), "order": order}
    (folder / "order.json").write_text(json.dumps(about))
    return folder
