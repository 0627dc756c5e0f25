"""Fetches published weights and makes a checkpoint: `o3d weights fetch released|svd-lgm`.

    released    the PyTorch release, to sample with: then `o3d sample IMAGE --checkpoint released`
    svd-lgm     SVD and LGM, to train from: then `o3d train ouroboros3d --weights svd-lgm`

They come from the Hugging Face hub, at the address in HF_ENDPOINT if that is set:

    huanngzh/Ouroboros3D-SVD-LGM                 released
    stabilityai/stable-video-diffusion-img2vid   both; gated
    ashawkey/LGM                                 svd-lgm

A gated repository wants its license accepted, on its page and with your account, and a token of
that account: `hf auth login`, or HF_TOKEN. What each license is, is said before anything comes.

The checkpoint goes to o3d_jax/weights in the folder XDG_CACHE_HOME, or ~/.cache, with the licenses
and the commits that it was made of. What stops on the way, goes on when the command is run again.
Needs huggingface_hub, pip install 'o3d-jax[hub]', and for .pth files torch, 'o3d-jax[convert]'.
"""

import sys

from o3d_jax.cli import choice, parse
from o3d_jax.weights.hub.fetch import carry_out, description, from_disk, survey, there_already
from o3d_jax.weights.hub.orders import FETCHES


def main(arguments: list[str], program: str) -> None:
    """Reads the command line; says what comes before it comes."""
    if arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write(str(__doc__))
        return
    name = choice(FETCHES, arguments, "fetch")

    # The cheapest way that leads there: what is there already, what is on disk, the hub.
    order = parse(FETCHES[name], arguments[1:], prog=f"{program} {name}")
    if (said := there_already(order)) is not None:
        sys.stdout.write(said)
    elif order.source is not None:
        sys.stdout.write(from_disk(order, order.source))
    else:
        fetch = survey(order)
        sys.stdout.write(description(fetch))
        sys.stdout.flush()  # Before the bars of what comes, which go to the other output.
        sys.stdout.write(carry_out(fetch))
