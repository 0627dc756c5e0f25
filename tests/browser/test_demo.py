"""The demo in a browser: a whole sampling, and what people send to it; with toy networks."""

import gc
import http.server
import struct
import threading
import time
import weakref
import zlib

import numpy as np
import pytest
from PIL import Image

from o3d_jax.__main__ import main as o3d
from o3d_jax.sampling import loop
from o3d_jax.viewing import demo as demo_module
from o3d_jax.viewing.uploads import MOST_UPLOADED
from support.toy_sampling import picture, save_toy, use_toys

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("quick_compilation")]
READY = "press Start."


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a toy model, and what sample.py makes of brick.png with it, seed 3."""
    folder = tmp_path_factory.mktemp("demo")
    save_toy(folder / "toy")
    picture(folder)
    with pytest.MonkeyPatch.context() as patch:
        use_toys(patch.setattr)
        order = ["--out", folder / "out", "--checkpoint", folder / "toy", "--seed", 3]
        shown = ["--orbit-size", "16", "--mesh"]
        o3d(["sample", str(folder / "brick.png"), *map(str, order), *shown])
        yield folder


@pytest.fixture(scope="module")
def demo(place):
    started = demo_module.start_demo(loop.read_sampler(place / "toy"), "127.0.0.1", 0)
    yield started
    started.server.stop()


@pytest.fixture
def open_demo(demo, tab):
    def opened():
        page = tab(f"http://127.0.0.1:{demo.server.get_port()}")
        page.get_by_text(READY).wait_for()
        return page

    return opened


def send(page, name, content):
    """As if chosen in the dialog of the button; `content` may be the path of a file."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload an image").click()
    if isinstance(content, bytes):
        content = {"name": name, "mimeType": "image/png", "buffer": content}
    chooser.value.set_files(content)


def png(width, height):
    """A PNG whose header says so, and that has not one row of it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(b"\0" * 100), b"IEND"]
    parts = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def memory():
    """Of this process, in MB."""
    gc.collect()
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1000


def test_a_sampling_ends_in_the_bytes_that_sample_py_writes(open_demo, place, seen):
    page = open_demo()
    send(page, "brick.png", (place / "brick.png").read_bytes())
    page.get_by_text("brick.png: " + READY).wait_for()
    page.get_by_label("seed").fill("3")
    page.get_by_label("seed").press("Tab")
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Start").click()
    page.get_by_text("Done:").wait_for(timeout=120_000)
    assert seen(page).min() < 0.9
    files = {"ply": "gaussians.ply", "splat": "gaussians.splat", "glb": "mesh.glb"}
    for kind, file in files.items():
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Download {kind}").click()
        assert download.value.suggested_filename == f"brick.{kind}"
        made = (place / "out" / "brick" / file).read_bytes()
        assert open(download.value.path(), "rb").read() == made
    with page.expect_download() as download:
        page.get_by_role("button", name="Download html").click()
    assert b"<title>brick</title>" in open(download.value.path(), "rb").read()


def test_what_is_no_picture_is_refused_with_its_reason_and_memory_comes_back(
    open_demo, place, tmp_path
):
    page = open_demo()
    with (tmp_path / "huge.png").open("wb") as huge:
        huge.truncate(200_000_000)
    brick = (place / "brick.png").read_bytes()
    before = memory()
    cases = [
        ("huge.png", tmp_path / "huge.png", "the file has 200 MB; at most 20 MB are taken"),
        ("bomb.png", png(60_000, 60_000), "bomb.png has more than 64 megapixels; shrink it"),
        ("setup.png", b"MZ\x90\0" + b"\0" * 5000, "setup.png is not a readable PNG, JPEG or WebP"),
        ("cut.png", brick[: len(brick) // 2], "cut.png is damaged or cut short"),
        ("empty.png", b"", "empty.png is empty (0 bytes)"),
        ("../../etc/pass<b>wd.png", b"no", "pass_b_wd.png is not a readable"),
    ]
    for name, content, said in cases:
        send(page, name, content)
        page.get_by_text(said).first.wait_for(timeout=60_000)
    for number in range(20):
        send(page, f"{number}.png", brick)
    page.get_by_text("19.png: " + READY).wait_for()
    page.get_by_role("button", name="Start").click()
    page.get_by_text("Done:").wait_for(timeout=60_000)
    page.context.close()
    # 20 MB of the 200 would be one file that was taken after all.
    assert memory() - before < MOST_UPLOADED / 1e6 + 20


def test_a_closed_tab_frees_its_work_and_who_waits_is_next(open_demo, demo, monkeypatch):
    go_on, levels = threading.Event(), []
    real = loop.sample_step

    def slow(*given):
        levels.append(len(levels))
        go_on.wait(60)
        return real(*given)

    monkeypatch.setattr(loop, "sample_step", slow)
    first, second, third = open_demo(), open_demo(), open_demo()
    first.get_by_role("button", name="Start").click()
    while not levels:
        time.sleep(0.05)
    tab_of_first = weakref.ref(next(t for t in demo.tabs.values() if t.sampling is not None))
    second.get_by_role("button", name="Start").click()
    second.get_by_text("Waiting: you are next.").wait_for()
    third.get_by_role("button", name="Start").click()
    third.get_by_text("Waiting: 2 before you.").wait_for()
    third.get_by_role("button", name="Stop").click()
    third.get_by_text("Stopped.").wait_for()

    first.context.close()
    while len(demo.tabs) > 2:
        time.sleep(0.05)
    go_on.set()
    second.get_by_text("Done:").wait_for(timeout=60_000)
    assert len(levels) == 1 + 5  # One of the closed tab, and all of the second's.
    for _ in range(100):
        gc.collect()
        if tab_of_first() is None:
            break
        time.sleep(0.1)
    assert tab_of_first() is None  # Nothing holds what the closed tab had.


OPEN_SOCKET = """(port) => new Promise((done) => {
    const socket = new WebSocket(`ws://127.0.0.1:${port}`, VERSION);
    socket.onopen = () => done("open");
    socket.onerror = () => done("refused");
})"""


def test_a_page_of_another_site_in_the_same_browser_cannot_talk_to_the_demo(demo, browser):
    from viser import __version__

    port, before = demo.server.get_port(), set(demo.tabs)
    script = OPEN_SOCKET.replace("VERSION", f"'viser-v{__version__}'")
    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    page = browser.new_page()
    try:
        page.goto(f"http://127.0.0.1:{other.server_port}")  # An error page; its origin counts.
        assert page.evaluate(script, port) == "refused"
        assert set(demo.tabs) <= before  # That of another test may close just now.
        page.goto(f"http://127.0.0.1:{port}")
        assert page.evaluate(script, port) == "open"
    finally:
        page.close()
        other.shutdown()
        other.server_close()


def test_an_upload_longer_than_it_was_said_to_be_is_dropped():
    """A browser would not do so, but nobody has to use one."""
    from viser import _messages

    from o3d_jax.viewing.uploads import guard_uploads

    queued = []

    class Connection(dict):
        unregister_handler = dict.pop
        register_handler = dict.__setitem__
        queue_message = queued.append

    class Gui:
        _websock_interface = Connection()
        _current_file_upload_states = {}
        taken = 0

        def _handle_file_transfer_start(self, client, message):
            state = {"transferred_bytes": 0, "total_bytes": message.size_bytes}
            self._current_file_upload_states[message.transfer_uuid] = state

        def _handle_file_transfer_part(self, client, message):
            state = self._current_file_upload_states[message.transfer_uuid]
            state["transferred_bytes"] += len(message.content)
            self.taken += 1

    gui, said = Gui(), []
    start, part = _messages.FileTransferStartUpload, _messages.FileTransferPart
    gui._websock_interface |= {start: None, part: None}
    guard_uploads(gui, said.append)
    begin, take = (gui._websock_interface[kind] for kind in (start, part))

    def message(**fields):
        return type("Message", (), {"transfer_uuid": "a", "source_component_uuid": "b", **fields})()

    begin(1, message(size_bytes=10))
    take(1, message(content=b"12345"))
    take(1, message(content=b"123456"))
    assert gui.taken == 1 and gui._current_file_upload_states == {}
    assert said == ["the file is longer than the browser said; send it again"]
    take(1, message(content=b"1"))
    begin(1, message(size_bytes=MOST_UPLOADED + 1))
    assert gui.taken == 1 and gui._current_file_upload_states == {} and len(said) == 2
    assert queued[0].transferred_bytes == queued[0].total_bytes == MOST_UPLOADED + 1


def test_the_cut_out_is_shown_as_the_networks_see_it(open_demo, place, demo):
    page = open_demo()
    send(page, "brick.png", (place / "brick.png").read_bytes())
    page.get_by_text("brick.png: " + READY).wait_for()
    with Image.open(place / "out" / "brick" / "input.png") as image:
        expected = np.asarray(image.convert("RGB"))
    shown = demo.tabs[max(demo.tabs)].cutout.image
    times = len(shown) // len(expected)
    np.testing.assert_array_equal(shown[::times, ::times], expected)
