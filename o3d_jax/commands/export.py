"""Writes weights under their torch names: `python -m o3d_jax.commands.export CHECKPOINT OUT`.

OUT/mv_model_unet and OUT/recon_model, OUT/vae/diffusion_pytorch_model and OUT/image_encoder/model,
each as .safetensors, above 5 GB as shards with an index. The release wants .pth; with torch:

    parts = [safetensors.torch.load_file(f) for f in glob.glob("OUT/mv_model_unet*.safetensors")]
    torch.save({k: v for part in parts for k, v in part.items()}, "mv_model_unet.pth")
"""

import sys

from o3d_jax.cli import parse
from o3d_jax.errors import exit_on_input_error
from o3d_jax.weights.pytorch.export import Export, export


@exit_on_input_error()
def main() -> None:
    """Reads the command line."""
    sys.stdout.write(export(parse(Export, sys.argv[1:], prog="export", description=__doc__)))


if __name__ == "__main__":
    main()
