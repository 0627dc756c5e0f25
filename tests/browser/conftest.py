"""Chromium, in which every host but this one is blocked, and what one sees in it."""

import importlib
import io

import numpy as np
import pytest
from PIL import Image

CHROMIUM = "/usr/bin/chromium"
OPTIONS = (
    "--no-sandbox",
    "--use-angle=swiftshader",  # OpenGL in software.
    "--enable-unsafe-swiftshader",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
SIZE = (800, 600)
ONLY_CANVAS = "*:not(:has(canvas)):not(canvas) { visibility: hidden !important }"


def pytest_ignore_collect(config):
    """Nothing here is for whoever does not ask for it: it needs packages that others don't."""
    return None if "browser" in config.option.markexpr else True


@pytest.fixture(scope="session")
def browser():
    api = importlib.import_module("playwright.sync_api")
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=[*OPTIONS])
        yield started
        started.close()


@pytest.fixture
def tab(browser):
    """Opens tabs; what they asked other hosts for, and errors in them, fail the test."""
    contexts, wrong = [], []

    def asked(request):
        if not request.url.startswith(("file:", "blob:", "data:", "http://127.0.0.1:")):
            wrong.append(request.url)

    def open_tab(address):
        context = browser.new_context(viewport=dict(zip(("width", "height"), SIZE, strict=True)))
        contexts.append(context)
        context.set_default_timeout(180_000)  # ms; software draws slowly where others work, too.
        page = context.new_page()
        page.on("request", asked)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        page.wait_for_selector("canvas")
        return page

    yield open_tab
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def seen():
    """What is on the canvas, as (h, w, 3) in [0, 1], once it has come to rest."""

    def picture(page, style):
        tag = page.add_style_tag(content=style)
        bytes_ = page.screenshot()
        tag.evaluate("tag => tag.remove()")
        return np.asarray(Image.open(io.BytesIO(bytes_)).convert("RGB"), np.float32) / 255

    def look(page):
        before = None
        for _ in range(60):
            now = picture(page, ONLY_CANVAS)
            if before is not None and np.array_equal(now, before) and now.min() < 0.9:
                return now
            before = now
            page.wait_for_timeout(500)
        raise TimeoutError("the canvas is blank, or never comes to rest")

    return look
