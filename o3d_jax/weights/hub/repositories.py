"""The published weights: where on the Hugging Face hub they are, and which files of each count.

The revisions below are those of main at the time of writing where public code names them; where
none does, main is resolved to a commit when the fetch begins, and written down beside the weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from o3d_jax.weights.pytorch.convert import Variant


@dataclass(frozen=True)
class Repository:
    """A repository of models, and what is known of it without a network."""

    name: str
    revision: str
    """Branch, tag or commit that is fetched unless another is asked for."""
    license: str
    """What its files may be used for, in words; its own model card has the last one."""
    known: Mapping[str, str] = field(default_factory=dict, compare=False)
    """File to SHA-256, for files that are asked for by more than their name."""

    @property
    def folder(self) -> str:
        """Returns what a folder with its files is called: the name without its owner."""
        return self.name.rpartition("/")[2]

    @property
    def page(self) -> str:
        """Returns where a person reads about it, and accepts its license."""
        return f"https://huggingface.co/{self.name}"


RELEASE_REPO = Repository(
    name="huanngzh/Ouroboros3D-SVD-LGM",
    revision="main",  # No commit of it is on record in public code.
    license="as its page says; made from SVD and LGM, whose licenses bind it, too",
)
"""The PyTorch release of Ouroboros3D: the multi-view U-Net, and LGM with a time embedding."""

SVD_REPO = Repository(
    name="stabilityai/stable-video-diffusion-img2vid",
    revision="9cf024d5bfa8f56622af86c884f26a52f6676f2e",  # As pinned in much public code.
    license="Stability AI Community License; for commercial use see https://stability.ai/license",
)
"""Stable Video Diffusion of 14 frames. Gated: its license has to be accepted first."""

LGM_REPO = Repository(
    name="ashawkey/LGM",
    revision="main",  # The hash below pins the one file that is taken.
    license="MIT",
    known={
        "model_fp16_fixrot.safetensors": (
            "744d6324656342c64f871308e73db97f0eb51858d94329b30090e986a6d050ab"
        )
    },
)
"""LGM's weights whose rotations are normalized one by one."""


@dataclass(frozen=True)
class Wanted:
    """What is to be fetched of a repository."""

    repository: Repository
    revision: str
    choices: tuple[tuple[str, ...], ...]
    """Files; of each group the first that is there."""


def release_files(revision: str) -> Wanted:
    """Returns the files of both networks; safetensors go first, since those need no torch."""
    stems = ("mv_model_unet", "recon_model")
    choices = tuple((f"{stem}.safetensors", f"{stem}.pth") for stem in stems)
    return Wanted(RELEASE_REPO, revision, choices)


def svd_files(revision: str, variant: Variant, *, unet: bool) -> Wanted:
    """Returns the files of VAE and image encoder, and on demand of the U-Net, for diffusers."""
    suffix = ".fp16.safetensors" if variant == "fp16" else ".safetensors"
    stems = {"vae": "diffusion_pytorch_model", "image_encoder": "model"}
    if unet:
        stems["unet"] = "diffusion_pytorch_model"
    files = [f"{folder}/{stem}{suffix}" for folder, stem in stems.items()]
    configs = [f"{folder}/config.json" for folder in stems]
    return Wanted(SVD_REPO, revision, tuple((file,) for file in [*files, *configs]))


def lgm_files(revision: str) -> Wanted:
    """Returns the file of LGM's "fixrot" weights."""
    return Wanted(LGM_REPO, revision, tuple((file,) for file in LGM_REPO.known))
