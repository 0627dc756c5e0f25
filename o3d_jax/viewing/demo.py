"""`o3d demo`: from an image to an object in the browser, level by level.

Each browser tab has a panel, a scene and work of its own; one sampling runs at a time. What a tab
holds is gone when it is closed, and nothing is kept on disk.
"""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from o3d_jax.errors import InputError
from o3d_jax.files.images import to_bytes
from o3d_jax.media.foreground import recenter_on_white
from o3d_jax.nn.networks import Ouroboros
from o3d_jax.parallel.host import give_back_freed_memory
from o3d_jax.sampling.loop import (
    Recipe,
    check_choices,
    default_feedback,
    run_levels,
    with_choices,
)
from o3d_jax.viewing.downloads import DOWNLOADS, MadeInDemo, file_of
from o3d_jax.viewing.library import start_server
from o3d_jax.viewing.line import WaitingLine
from o3d_jax.viewing.scene import put_cameras, put_object, set_stage
from o3d_jax.viewing.shown import ShownLevel, look_at, upright_cameras
from o3d_jax.viewing.uploads import MOST_UPLOADED, cut_out_upload, guard_uploads, shown_name
from o3d_jax.viewing.viewer import sheet_of
from o3d_jax.weights.checkpoint import BUNDLED

BORDER, ELEVATION = 0.25, 10.0
"""The border and the elevation that `sample.py` has by default."""

MOST_LEVELS_HERE = 50
BLANK = np.full((8, 8, 3), 255, np.uint8)
NO_EXAMPLE = "(your own)"
HINT = f"PNG, JPEG or WebP of one object, up to {MOST_UPLOADED // 10**6} MB and 64 megapixels"


def start_demo(model: Ouroboros, host: str, port: int) -> "Demo":
    """Returns a running demo; it runs in threads until its server is stopped.

    Raises:
        InputError: viser is not installed.
    """
    server = start_server(host, port, "Ouroboros3D")
    demo = Demo(server, model)
    server.on_client_connect(demo.opened)
    server.on_client_disconnect(demo.closed)
    return demo


class Demo:
    """What all tabs share."""

    def __init__(self, server: Any, model: Ouroboros) -> None:
        self.server, self.model, self.line = server, model, WaitingLine()
        self.decoding = threading.Lock()  # A picture takes up to 2 GB while it is decoded.
        self.examples = {path.stem: path for path in sorted(BUNDLED.glob("*.png"))}
        self.tabs: dict[int, Tab] = {}
        set_stage(server, upright_cameras(model.config, ELEVATION), from_afar=False)

    def opened(self, client: Any) -> None:
        """Gives a new tab its panel."""
        self.tabs[client.client_id] = Tab(self, client)

    def closed(self, client: Any) -> None:
        """Ends a closed tab's work, and forgets all that it held."""
        tab = self.tabs.pop(client.client_id, None)
        if tab is not None:
            tab.forget()
            del tab
            give_back_freed_memory()


@dataclasses.dataclass
class Sampling:
    """The work that a tab asked for."""

    tab: "Tab"
    image: Float[np.ndarray, "h w 3"]
    name: str
    recipe: Recipe
    is_stopped: bool = False

    def moved(self, ahead: int) -> None:
        """Shows the place in the line."""
        self.tab.say(f"Waiting: {ahead} before you." if ahead > 1 else "Waiting: you are next.")

    def failed(self, error: Exception) -> None:
        """Shows what went wrong."""
        if self.is_stopped:
            return
        known = isinstance(error, InputError)
        self.tab.stop()
        self.tab.say(f"**{error}**" if known else "**It failed; the terminal says why.**")

    def run(self) -> None:
        """Samples, and shows each level, unless it is stopped in between."""
        model, count = self.tab.demo.model, self.recipe.sample.levels
        self.tab.say("The first time, compiling takes half a minute ...")
        shown: list[ShownLevel] = []
        for found in run_levels(model, self.recipe, self.image):
            if self.is_stopped:
                return
            shown.append(look_at(model.config, found.level, self.recipe.elevation))
            self.tab.show(shown[-1], self.recipe.elevation)
            self.tab.progress.value = 100 * len(shown) / count
            self.tab.say(f"Level {len(shown)} of {count}: {shown[-1].title}")
        self.tab.finish(MadeInDemo(self.name, model.config, self.recipe.elevation, shown))


class Tab:
    """A browser tab: its panel, its image, its work and what came of it."""

    def __init__(self, demo: Demo, client: Any) -> None:
        self.demo, self.client = demo, client
        self.image: Float[np.ndarray, "h w 3"] | None = None
        self.name, self.uploads = "image", 0
        self.sampling: Sampling | None = None
        self.made: MadeInDemo | None = None
        guard_uploads(client.gui, lambda why: self.complain(why))
        self._build_input()
        self._build_options()
        self._build_output()
        self.pick_example(next(iter(demo.examples), NO_EXAMPLE))

    def _build_input(self) -> None:
        gui, examples = self.client.gui, (*self.demo.examples, NO_EXAMPLE)
        self.upload = gui.add_upload_button("Upload an image", hint=HINT, mime_type="image/*")
        self.example = gui.add_dropdown("or an example", examples, initial_value=examples[0])
        self.cutout = gui.add_image(BLANK, label="the object alone")
        self.upload.on_upload(lambda _: self.use(self.upload.value.name, self.upload.value.content))
        self.example.on_update(lambda _: self.pick_example(self.example.value))

    def _build_options(self) -> None:
        gui, sample = self.client.gui, self.demo.model.config.sample
        self.seed = gui.add_number("seed", 0, min=0, max=2**32 - 1, step=1)
        self.guidance = gui.add_number("guidance", sample.max_guidance, min=0, max=20, step=0.1)
        self.levels = gui.add_slider("noise levels", 2, MOST_LEVELS_HERE, 1, sample.levels)
        self.elevation = gui.add_slider("elevation", -60, 60, 1, ELEVATION, hint="degrees")
        self.start = gui.add_button("Start", color="green")
        self.end = gui.add_button("Stop", disabled=True)
        self.start.on_click(lambda _: self.begin())
        self.end.on_click(lambda _: self.stop())

    def _build_output(self) -> None:
        gui = self.client.gui
        self.status = gui.add_markdown("")
        self.progress = gui.add_progress_bar(0, visible=False)
        self.downloads = {}
        for kind in DOWNLOADS:
            button = gui.add_button(f"Download {kind}", visible=False)
            button.on_click(lambda _, kind=kind: self.download(kind))
            self.downloads[kind] = button
        self.views = gui.add_image(BLANK, label="views", visible=False)

    def pick_example(self, name: str) -> None:
        """Takes one of the bundled pictures."""
        path: Path | None = self.demo.examples.get(name)
        if path is not None:
            self.use(path.name, path.read_bytes())

    def use(self, name: str, content: bytes) -> None:
        """Takes a picture, cuts its object out, and shows that; or says why not."""
        self.uploads += 1
        mine = self.uploads
        with self.demo.decoding:
            if mine != self.uploads:  # Another came while this one waited.
                return
            try:
                size = self.demo.model.config.model.image_size
                found = cut_out_upload(content, name)
                image = recenter_on_white(found.rgba, size, BORDER)
            except InputError as error:
                return self.complain(str(error))
        self.image, self.name = image, Path(shown_name(name)).stem
        self.cutout.image = enlarged(image)
        self.say(f"{shown_name(name)}: {found.note or 'press Start.'}")

    def begin(self) -> None:
        """Asks for an object of the picture, with the options of the panel."""
        if self.image is None:
            return self.complain("upload an image, or pick an example")
        self.stop()
        try:
            self.sampling = Sampling(self, self.image, self.name, self._recipe())
            self.demo.line.join(self.sampling)
        except InputError as error:
            self.sampling = None
            return self.complain(str(error))
        self.start.disabled, self.end.disabled = True, False
        self.progress.value, self.progress.visible = 0, True

    def _recipe(self) -> Recipe:
        """The options of the panel; a browser may send any numbers."""
        config, seed = self.demo.model.config, int(self.seed.value)
        levels, guidance = int(self.levels.value), float(self.guidance.value)
        elevation = float(self.elevation.value)
        if not 0 <= seed < 2**32:
            raise InputError(f"seed {seed} is not in 0 .. 2^32 - 1")
        if not -90 < elevation < 90:
            raise InputError(f"elevation {elevation} is not in -90 .. 90 degrees")
        if levels > MOST_LEVELS_HERE:
            raise InputError(f"{levels} noise levels are above {MOST_LEVELS_HERE}")
        check_choices(config, guidance, None)
        sample = with_choices(config.sample, levels, guidance)
        return Recipe(sample, seed, elevation, default_feedback(config))

    def stop(self) -> None:
        """Ends the tab's work, and says so."""
        if self.sampling is not None:
            self.forget()
            self.say("Stopped.")
            self.ready()

    def forget(self) -> None:
        """Ends the tab's work at its next level, or takes it out of the line."""
        if self.sampling is not None:
            self.sampling.is_stopped = True
            self.demo.line.leave(self.sampling)
            self.sampling = None

    def ready(self) -> None:
        """Allows a new start."""
        self.start.disabled, self.end.disabled = False, True
        self.progress.visible = False

    def show(self, level: ShownLevel, elevation: float) -> None:
        """Puts a level's object and views into the scene and the panel."""
        cameras = upright_cameras(self.demo.model.config, elevation)
        with self.client.atomic():
            put_object(self.client.scene, level.gaussians)
            for camera in put_cameras(self.client.scene, cameras, level.views):
                camera.visible = False  # In front of the object, at first; the scene tree has them.
            self.views.image, self.views.visible = sheet_of(level.views), True

    def finish(self, made: MadeInDemo) -> None:
        """Offers what was made as files."""
        self.made, self.sampling = made, None
        self.say(f"Done: {len(made.levels[-1].gaussians.opacities):,} Gaussians.")
        for button in self.downloads.values():
            button.visible = True
        self.ready()

    def download(self, kind: str) -> None:
        """Sends a file of the last object."""
        if self.made is not None:
            try:
                content = file_of(self.made, kind)
            except InputError as error:
                return self.complain(str(error))
            name = f"{self.made.name}.{kind}"
            self.client.send_file_download(name, content, save_immediately=True)

    def say(self, text: str) -> None:
        """Shows how things are."""
        self.status.content = text

    def complain(self, why: str) -> None:
        """Shows what is not possible, and why."""
        self.client.add_notification("Not possible", why, color="red", auto_close_seconds=20.0)
        self.say(f"**Not possible:** {why}")


def enlarged(image: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a small picture with pixels of several, so that browsers do not blur it much."""
    times = max(1, 256 // len(image))
    return np.asarray(to_bytes(image).repeat(times, 0).repeat(times, 1))
