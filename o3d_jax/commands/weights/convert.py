"""Makes a checkpoint from torch weights: `o3d weights convert svd|lgm|released ...`.

    svd SVD_DIR OUT [--lgm FILE]    to train from: SVD's U-Net, VAE and image encoder, and LGM
    lgm FILE OUT                    LGM alone: to compare it with torch's, to export it, or to
                                    train it further, as the LGM of a config's `weights`
    released DIR OUT [--svd DIR]    to sample with: mv_model_unet.pth and recon_model.pth
    [--lpips TRUNK LIN]             with svd, released: for the perceptual loss
    [--strip-prefix PREFIX]         of names that all begin with module. or another wrapper's; once
                                    for each prefix

What the files don't know starts fresh, from the config's seed: feedback encoders, ray embeddings,
LGM's time embedding. How many views or frames there are is not in the weights: the config says so.
Values keep their type, so that `o3d weights export` gives the same bits.
`.pth` files need torch: pip install 'o3d-jax[convert]'.
"""

import sys

from o3d_jax.cli import choice, parse
from o3d_jax.weights.pytorch.convert import ORDERS, convert


def main(arguments: list[str], program: str) -> None:
    """Reads the command line."""
    if arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write(str(__doc__))
        return
    name = choice(ORDERS, arguments, "convert")
    sys.stdout.write(convert(parse(ORDERS[name], arguments[1:], prog=f"{program} {name}")))
