"""Measures models on rendered objects: `o3d evaluate RENDERED --out FOLDER`.

    [--weights MODEL ...]    default: the bundled model; several make one table, as Table 2 does
    [--labels NAME ...]      their rows' names; default: those of their configs
    [--protocol NAME|FILE]   what is compared, and how; see o3d_jax/assets/protocols
    [--lpips TRUNK LIN]      weights of LPIPS: lpips-j's .h5 files, or torch's; without, no LPIPS
    [--true-meshes MODELS]   what was rendered; adds meshes' silhouettes, Chamfer, F-score

RENDERED is a folder that `o3d data render` wrote. Of each orbit a model is given the first frame
and all cameras; its views, and renders of its Gaussians, are compared with the other frames. FOLDER
gets results.json, results.md, and sheet.png to look at. Until then FOLDER.unfinished has what is
done: an evaluation that broke off goes on from there when run again.
"""

import sys

from o3d_jax.cli import parse, use_compilation_cache
from o3d_jax.evaluation.evaluate import RESULT_FILES, EvaluateArguments, evaluate


def main(arguments: list[str], program: str) -> None:
    """Reads the command line."""
    order = parse(EvaluateArguments, arguments, prog=program, description=__doc__)
    use_compilation_cache()
    folder = evaluate(order)
    sys.stdout.write((folder / "results.md").read_text(encoding="utf-8"))
    sys.stdout.write(f"wrote {folder}: {', '.join(RESULT_FILES)}\n")
