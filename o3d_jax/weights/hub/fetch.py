"""Published weights to a checkpoint in the user's cache: list, make sure of room, fetch, convert.

In the cache, `weights/NAME` appears whole: the checkpoint `model`, `manifest.json` with the commit
and hash of all that it was made of, and `licenses`. Until then what has come is in
`downloads/NAME`, and the next attempt goes on with it; after that it is removed, since the
checkpoint has the same bits.
"""

import contextlib
import dataclasses
import importlib.util
import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from o3d_jax.cli import read_config
from o3d_jax.config import ModelConfig
from o3d_jax.errors import InputError
from o3d_jax.files.atomic import check_ours, whole_folder, written_whole
from o3d_jax.weights.fetched import fetched, kept
from o3d_jax.weights.hub.download import alone, bytes_to_come, download
from o3d_jax.weights.hub.faults import check_installed
from o3d_jax.weights.hub.listing import Listing, RemoteFile, is_paper, list_files
from o3d_jax.weights.hub.orders import FetchReleased, FetchSvdLgm, Folders
from o3d_jax.weights.pytorch.convert import convert
from o3d_jax.weights.pytorch.names import manifest
from o3d_jax.weights.pytorch.rules import LGM, SVD_UNET, network_shapes
from o3d_jax.weights.pytorch.safetensors import read_json

FILES = ("manifest.json", "licenses/*", "model/*")
"""All that is in a folder of fetched weights."""

FRESH_BYTES = 4
"""Size of a parameter that no file has: such are drawn in float32."""

Order = FetchReleased | FetchSvdLgm


@dataclass(frozen=True)
class Fetch:
    """Weights that can be fetched: they are listed, and there is room for them."""

    order: Order
    listings: tuple[Listing, ...]
    downloads: Path

    def target(self, listing: Listing, file: RemoteFile) -> Path:
        """Where a file goes."""
        return self.downloads / listing.repository.folder / file.path


def there_already(order: Order) -> str | None:
    """Returns a line about weights that were fetched before, or None if there are none.

    Raises:
        InputError: they are of another revision than is asked for.
    """
    folder = fetched(order.name)
    if not (folder / "model").is_dir():
        return None
    made_of = _table(folder / "manifest.json").get("repositories", {})
    for wanted in order.wanted():
        name, revision = wanted.repository.name, wanted.revision
        was = made_of.get(name)
        if was and revision not in (was["revision"], was["commit"]):
            raise InputError(
                f"{folder} is of {name} at {was['commit']}, not {revision}; remove that folder to "
                "fetch again"
            )
    return f"{folder} is there already; remove it to fetch again\n"


def _table(path: Path) -> dict[str, Any]:
    """Returns what a file of ours holds; nothing if it is not there."""
    return read_json(path.read_bytes(), path) if path.is_file() else {}


def survey(order: Order) -> Fetch:
    """Returns what there is to fetch, by the hub, if the disk has room for it.

    Raises:
        InputError: as `list_files`; huggingface_hub or torch is not installed; the config or a
            file that goes along is not there; an attempt before has files of another commit; there
            is not enough room.
    """
    check_installed()
    made_for = read_config(order.config, []).model
    _check_lpips(order)
    listings = tuple(list_files(wanted) for wanted in order.wanted())
    fetch = Fetch(order, listings, _downloads(order))
    _check_torch(listings)
    _check_commits(fetch)
    _check_room(fetch, made_for)
    return fetch


def description(fetch: Fetch) -> str:
    """Returns what is about to be fetched, from where, and what it may be used for."""
    lines = []
    for listing in fetch.listings:
        size = sum(file.size for file in listing.files)
        lines += [
            f"{listing.repository.name} at {listing.commit}: {len(listing.files)} files, "
            f"{size / 1e9:.2f} GB\n",
            f"  license: {listing.license}; {listing.repository.page}\n",
        ]
    return "".join(lines)


def _check_torch(listings: Sequence[Listing]) -> None:
    """Raises an InputError before gigabytes come that could not be read."""
    pickled = [f.path for listing in listings for f in listing.files if f.path.endswith(".pth")]
    if pickled and importlib.util.find_spec("torch") is None:
        raise InputError(
            f"to read {', '.join(pickled)}, install torch: pip install 'o3d-jax[convert]'"
        )


def _check_lpips(order: Order) -> None:
    """Raises an InputError if a file that no hub has is not on disk."""
    files = order.lpips if isinstance(order, FetchSvdLgm) else None
    for path in files or ():
        if not path.is_file():
            raise InputError(f"no file {path}; give LPIPS's two files, or leave --lpips out")


def _check_commits(fetch: Fetch) -> None:
    """Raises an InputError if `main` has moved: files of two commits must not come together."""
    begun = _table(fetch.downloads / "commits.json")
    for listing in fetch.listings:
        name = listing.repository.name
        if begun.get(name, listing.commit) != listing.commit:
            raise InputError(
                f"{listing.revision} of {name} is {listing.commit} by now, and what is in "
                f"{fetch.downloads} is of {begun[name]}; ask for that commit to go on, or remove "
                "the folder to begin anew"
            )


def _check_room(fetch: Fetch, made_for: ModelConfig) -> None:
    """Raises an InputError unless downloads and checkpoint have room on the disk, both at once."""
    files = [(listing, file) for listing in fetch.listings for file in listing.files]
    come = sum(bytes_to_come(file, fetch.target(listing, file)) for listing, file in files)
    made = sum(file.size for _, file in files if file.has_weights)
    if isinstance(fetch.order, FetchSvdLgm):
        made += _fresh_bytes(made_for)
    place = fetch.downloads
    existing = next(p for p in (place, *place.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < come + made:
        raise InputError(
            f"{come / 1e9:.2f} GB are to come and the checkpoint takes {made / 1e9:.2f} GB, and "
            f"{free / 1e9:.2f} GB are free in {place}; make room, or set XDG_CACHE_HOME to a "
            "folder on another disk"
        )


def _fresh_bytes(model: ModelConfig) -> int:
    """Returns the size of the parameters that neither SVD nor LGM has, but the checkpoint will."""
    shapes = network_shapes(model)
    fresh = [
        shape
        for network, rule in ((shapes.unet, SVD_UNET), (shapes.lgm, LGM))
        for name, shape in manifest(network).items()
        if re.fullmatch(rule.fresh, name)
    ]
    return FRESH_BYTES * sum(math.prod(shape) for shape in fresh)


def carry_out(fetch: Fetch) -> str:
    """Fetches, converts and cleans up; says what went into the checkpoint, and where it is.

    Raises:
        InputError: as `download` and `convert`. What has come stays for the next attempt.
    """
    with alone(fetch.downloads):
        with written_whole(fetch.downloads / "commits.json") as path:
            commits = {listing.repository.name: listing.commit for listing in fetch.listings}
            path.write_text(json.dumps(commits, indent=1))
        # Small files first: whether a gated repository lets one in shows before gigabytes came.
        files = [(listing, file) for listing in fetch.listings for file in listing.files]
        for listing, file in sorted(files, key=lambda one: one[1].size):
            download(listing, file, fetch.target(listing, file))
        folders = {
            listing.repository: fetch.downloads / listing.repository.folder
            for listing in fetch.listings
        }
        report = _make(fetch.order, folders, [_record(listing) for listing in fetch.listings])
        shutil.rmtree(fetch.downloads)
    return report


def from_disk(order: Order, source: Path) -> str:
    """Converts files that are on disk, into the place where fetched ones would be.

    Raises:
        InputError: as `convert`.
    """
    folders = {}
    for wanted in order.wanted():
        own = source / wanted.repository.folder
        folders[wanted.repository] = own if own.is_dir() else source
    with alone(_downloads(order)):
        return _make(order, folders, [])


def _downloads(order: Order) -> Path:
    """Returns where files are until they are converted."""
    return kept("downloads") / order.name


def _record(listing: Listing) -> tuple[str, dict[str, Any]]:
    """Returns a repository's name, and what the manifest says of it."""
    hashes = {file.path: file.sha256 or f"git blob {file.blob}" for file in listing.files}
    facts = {
        "page": listing.repository.page,
        "revision": listing.revision,
        "commit": listing.commit,
        "license": listing.license,
        "files": hashes,
    }
    return listing.repository.name, facts


def _make(order: Order, folders: Folders, records: list[tuple[str, dict[str, Any]]]) -> str:
    """Writes `weights/NAME`, whole or not at all."""
    out = fetched(order.name)
    _remove_leftovers(out)
    with whole_folder(out, FILES) as scratch:
        convert(order.conversion(folders, scratch / "model"))
        for repository, folder in folders.items():
            _copy_papers(folder, scratch / "licenses" / repository.folder)
        from_folder = None if order.source is None else str(order.source.absolute())
        options = dataclasses.asdict(order) | {"source": from_folder}
        said = {"repositories": dict(records), "options": options}
        (scratch / "manifest.json").write_text(json.dumps(said, indent=1, default=str))
    report = (out / "model" / "report.txt").read_text()
    return f"{report}wrote {out / 'model'}\n"


def _copy_papers(folder: Path, out: Path) -> None:
    """Puts licenses and model cards where the weights go."""
    out.mkdir(parents=True)
    for path in folder.iterdir():
        if path.is_file() and is_paper(path.name):
            shutil.copy(path, out)


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left while they converted; the lock keeps others out."""
    for scratch in folder.parent.glob(f".{folder.name}-????????"):
        with contextlib.suppress(InputError):
            check_ours(scratch, (*FILES, ".model-*"))
            shutil.rmtree(scratch)
