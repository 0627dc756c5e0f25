"""A hub with the small model's weights, where `o3d weights fetch` looks for the real ones."""

import time

import pytest

from support.hub_server import COMMITS, LGM, RELEASE, SVD, TOKEN, Repository, hub_server


@pytest.fixture(scope="session")
def published(files):
    """Each repository's files: weights in float16, and papers."""
    contents = {RELEASE: _read(files / "released"), SVD: _read(files / "svd")}
    contents[LGM] = {"model_fp16_fixrot.safetensors": contents[SVD].pop("lgm_fixrot.safetensors")}
    for name, content in list(contents[SVD].items()):
        contents[SVD][name.replace(".safetensors", ".fp16.safetensors")] = content
    for name, there in contents.items():
        there["README.md"] = f"# {name}\n".encode()
        there["sample.gif"] = bytes(2000)  # Nothing that is wanted.
    contents[SVD]["LICENSE.md"] = b"You may. " * 100
    return contents


def _read(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache, which is not there yet; nor are a token, and settings of the hub's."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "o3d_jax"


@pytest.fixture
def hub(published, cache, monkeypatch):
    """The hub; only `allowed` may read SVD."""
    from huggingface_hub import constants

    with hub_server() as hub:
        for name, there in published.items():
            hub.repositories[name] = Repository(COMMITS[name], dict(there))
        hub.repositories[SVD].token = TOKEN
        hub.repositories[SVD].card = {"license": "other", "license_name": "community"}
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)  # As HF_ENDPOINT does at import.
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


@pytest.fixture
def allowed(cache, monkeypatch):
    """The user's token is of an account that has accepted SVD's license."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def impatient(monkeypatch):
    """Nobody waits between attempts, and each 100 bytes go to disk, where it is 10 MB else."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)


@pytest.fixture
def unconverted(monkeypatch, cache, published):
    """In place of a conversion, a look at what it would read; the orders for it are returned."""
    from o3d_jax.weights.hub import fetch

    orders = []

    def convert(order):
        for name, folder in ((RELEASE, order.folder), (SVD, order.svd)):
            wanted = {p: c for p, c in published[name].items() if _is_wanted(p)}
            assert wanted == {path: (folder / path).read_bytes() for path in wanted}
        orders.append(order)
        order.out.mkdir()
        (order.out / "report.txt").write_text("looked at\n")

    monkeypatch.setattr(fetch, "convert", convert)
    return orders


def _is_wanted(path):
    """Of the files that the release is converted from."""
    network, _, name = path.partition("/")
    if network in ("vae", "image_encoder"):
        return name == "config.json" or ".fp16." in name
    return not name and path.endswith(".safetensors")
