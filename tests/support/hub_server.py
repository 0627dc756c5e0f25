"""A hub of models on this machine, that answers as the Hugging Face hub does, and can be at fault.

What it answers is what huggingface_hub asks for: the list of a repository's files at a revision,
and each file at a commit. Large ones are sent on to another host with an address that is signed,
small ones to another path of the same; both can be asked for in parts.
"""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from dataclasses import dataclass, field

RELEASE = "huanngzh/Ouroboros3D-SVD-LGM"
SVD = "stabilityai/stable-video-diffusion-img2vid"
LGM = "ashawkey/LGM"
TOKEN = "hf_of_somebody_who_accepted"
COMMITS = {RELEASE: "1" * 40, SVD: "9cf024d5bfa8f56622af86c884f26a52f6676f2e", LGM: "3" * 40}
"""What `o3d weights fetch` asks for."""

LARGE = 500
"""Bytes; files above are kept apart, named by their SHA-256."""

ERRORS = {
    "GatedRepo": "Access to this model is restricted.",
    "RepoNotFound": "Repository not found",
    "RevisionNotFound": "Invalid rev id",
    "EntryNotFound": "Entry not found",
}


@dataclass
class Repository:
    """One at a commit, which is also what main is."""

    commit: str
    files: dict[str, bytes]
    card: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    """Whom it lets read its files; anybody, if None."""


@dataclass
class Hub:
    """What it has, what is wrong with it, and what it was asked."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)
    """By file, after how many bytes each answer in turn ends."""
    spoiled: dict[str, int] = field(default_factory=dict)
    """By file, how many answers still have one byte wrong."""
    gone: set[str] = field(default_factory=set)
    """Files that are listed, and are not there."""
    status: int | None = None
    """What everything is answered with."""
    text: bytes | None = None
    """What everything is answered with, of status 200."""
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    """Host and path, the range, and the authorization of each request."""
    address: str = ""

    def sent(self, file: str) -> list[str | None]:
        """The ranges that a large file was asked for in."""
        return [part for path, part, _ in self.asked if path.endswith(f"/kept/{file}")]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers for `hub`, which a subclass has."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        path = urllib.parse.unquote(self.path.partition("?")[0])
        headers = self.headers
        self.hub.asked.append(
            (f"{headers['Host']}{path}", headers["Range"], headers["Authorization"])
        )
        if self.hub.status is not None:
            return self.answer(self.hub.status, b"{}")
        if self.hub.text is not None:
            return self.answer(200, self.hub.text)
        if path.startswith("/kept/"):
            return self.send_file(path.removeprefix("/kept/"))
        if path.startswith("/api/models/"):
            name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            return self.list_files(name, revision)
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        return self.resolve(name, revision, file)

    def do_HEAD(self):
        self.do_GET()

    def list_files(self, name, revision):
        if (there := self.hub.repositories.get(name)) is None:
            return self.refuse(401, "RepoNotFound")
        if revision not in ("main", there.commit):
            return self.refuse(404, "RevisionNotFound")
        files = [listed(path, content) for path, content in there.files.items()]
        told = {"id": name, "sha": there.commit, "siblings": files, "gated": bool(there.token)}
        self.answer(200, json.dumps(told | {"cardData": there.card}).encode())

    def resolve(self, name, revision, file):
        if (there := self.hub.repositories.get(name)) is None:
            return self.refuse(401, "RepoNotFound")
        if there.token is not None and self.headers["Authorization"] != f"Bearer {there.token}":
            return self.refuse(403 if self.headers["Authorization"] else 401, "GatedRepo")
        if file not in there.files or file in self.hub.gone or revision != there.commit:
            return self.refuse(404, "EntryNotFound")
        where = f"/kept/{name}/{file}"
        if len(there.files[file]) > LARGE:  # localhost is another host than 127.0.0.1.
            port = self.server.server_address[1]
            where = f"http://localhost:{port}{where}?Signature=secret"
        self.answer(302 if len(there.files[file]) > LARGE else 307, b"", Location=where)

    def send_file(self, path):
        owner, name, file = path.split("/", 2)
        content = self.hub.repositories[f"{owner}/{name}"].files[file]
        if self.hub.spoiled.get(file, 0) > 0:
            self.hub.spoiled[file] -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        total, first = len(content), 0
        if part := self.headers["Range"]:
            first = int(part.removeprefix("bytes=").partition("-")[0])
        cuts = self.hub.cut.get(file, [])
        end = min(total, first + cuts.pop(0)) if cuts else total
        span = f"bytes {first}-{total - 1}/{total}"
        extra = {"Content-Range": span} if part else {}
        self.answer(206 if part else 200, content[first:end], total - first, **extra)
        if end < total:
            self.close_connection = True

    def refuse(self, status, code):
        self.answer(status, b"", **{"X-Error-Code": code, "X-Error-Message": ERRORS[code]})

    def answer(self, status, body, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)


def listed(path, content):
    """What the hub tells of a file."""
    told = {"rfilename": path, "size": len(content), "blobId": git_blob(content)}
    if len(content) > LARGE:
        sha256 = hashlib.sha256(content).hexdigest()
        told["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 135}
    return told


def git_blob(content):
    """As `git hash-object` has it."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@contextlib.contextmanager
def hub_server():
    """A hub that runs until the block ends."""
    hub = Hub()
    handler = type("HandlerOfOne", (Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
