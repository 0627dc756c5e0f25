"""Prints the script that dumps a torch network: `o3d weights dump-script > dump_torch.py`.

It runs in the PyTorch environment and needs nothing of this package; its first lines say how. What
it writes, `o3d weights compare` reads.
"""

import dataclasses
import importlib.resources
import sys

from o3d_jax.cli import parse


@dataclasses.dataclass(frozen=True)
class DumpScriptArguments:
    """There is nothing to choose."""


def main(arguments: list[str], program: str) -> None:
    """Prints the file; importing it would need torch."""
    parse(DumpScriptArguments, arguments, prog=program, description=__doc__)
    script = importlib.resources.files("o3d_jax.weights.pytorch") / "dump_script.py"
    sys.stdout.write(script.read_text(encoding="utf-8"))
