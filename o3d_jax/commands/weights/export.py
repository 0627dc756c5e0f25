"""Writes weights under their torch names: `o3d weights export CHECKPOINT OUT`.

OUT/mv_model_unet and OUT/recon_model, OUT/vae/diffusion_pytorch_model and OUT/image_encoder/model,
each as .safetensors, above 5 GB as shards with an index. The release wants .pth; with torch:

    parts = [safetensors.torch.load_file(f) for f in glob.glob("OUT/mv_model_unet*.safetensors")]
    torch.save({k: v for part in parts for k, v in part.items()}, "mv_model_unet.pth")
"""

import sys

from o3d_jax.cli import parse
from o3d_jax.weights.pytorch.export import Export, export


def main(arguments: list[str], program: str) -> None:
    """Reads the command line."""
    sys.stdout.write(export(parse(Export, arguments, prog=program, description=__doc__)))
