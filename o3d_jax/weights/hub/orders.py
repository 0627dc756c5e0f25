"""What `o3d weights fetch` can be asked for, and the conversion that each comes to."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from o3d_jax.places import CONFIGS
from o3d_jax.weights.hub.repositories import (
    LGM_REPO,
    RELEASE_REPO,
    SVD_REPO,
    Repository,
    Wanted,
    lgm_files,
    release_files,
    svd_files,
)
from o3d_jax.weights.pytorch.convert import FromRelease, FromSvd, Variant

Folders = Mapping[Repository, Path]
"""Where the files of each repository are on disk."""

FromFolder = Annotated[Path | None, tyro.conf.arg(name="from", metavar="FOLDER")]


@dataclass(frozen=True)
class FetchReleased:
    """The PyTorch release, with SVD's VAE and image encoder: to sample with."""

    source: FromFolder = None
    """Take the files from here, not from the hub: FOLDER/NAME_OF_REPOSITORY/..., or FOLDER/... ."""
    variant: Variant = "fp16"
    """Which of SVD's files; the release samples with fp16."""
    revision: str = RELEASE_REPO.revision
    """Branch, tag or commit of the release's repository."""
    svd_revision: str = SVD_REPO.revision
    """Branch, tag or commit of SVD's."""
    config: Path = CONFIGS / "released.py"
    """Says which architecture the weights must have; goes beside them."""

    name = "released"

    def wanted(self) -> tuple[Wanted, ...]:
        """Returns the files to fetch."""
        svd = svd_files(self.svd_revision, self.variant, unet=False)
        return (release_files(self.revision), svd)

    def conversion(self, folders: Folders, out: Path) -> FromRelease:
        """Returns what `o3d weights convert` is to do with them."""
        variant = self.variant
        return FromRelease(
            folders[RELEASE_REPO], out, svd=folders[SVD_REPO], variant=variant, config=self.config
        )


@dataclass(frozen=True)
class FetchSvdLgm:
    """SVD and LGM, which Ouroboros3D is trained from."""

    source: FromFolder = None
    """Take the files from here, not from the hub: FOLDER/NAME_OF_REPOSITORY/..., or FOLDER/... ."""
    variant: Variant = "fp32"
    """Which of SVD's files."""
    svd_revision: str = SVD_REPO.revision
    """Branch, tag or commit of SVD's repository."""
    lgm_revision: str = LGM_REPO.revision
    """Branch, tag or commit of LGM's."""
    lpips: tuple[Path, Path] | None = None
    """To train with the perceptual loss: torchvision's network, and LPIPS's weights of channels.
    These are on no hub; give files that you have."""
    config: Path = CONFIGS / "ouroboros3d.py"
    """Says which architecture the weights must have; goes beside them."""

    name = "svd-lgm"

    def wanted(self) -> tuple[Wanted, ...]:
        """Returns the files to fetch."""
        return (svd_files(self.svd_revision, self.variant, unet=True), lgm_files(self.lgm_revision))

    def conversion(self, folders: Folders, out: Path) -> FromSvd:
        """Returns what `o3d weights convert` is to do with them."""
        (file,) = LGM_REPO.known
        return FromSvd(
            folders[SVD_REPO],
            out,
            lgm=folders[LGM_REPO] / file,
            lpips=self.lpips,
            variant=self.variant,
            config=self.config,
        )


FETCHES = {"released": FetchReleased, "svd-lgm": FetchSvdLgm}
