"""`o3d view`: a result in the browser, with its noise levels under a slider."""

from typing import Any

import numpy as np
from jaxtyping import UInt8

from o3d_jax.files.images import to_bytes
from o3d_jax.media.sheets import grid
from o3d_jax.viewing.library import start_server
from o3d_jax.viewing.scene import put_cameras, put_mesh, put_object, set_stage
from o3d_jax.viewing.shown import ShownLevel, ShownResult

SHEET_COLUMNS = 4
"""Columns of the views in the panel."""


def start_viewer(shown: ShownResult, host: str, port: int) -> Any:
    """Returns a viser server that shows a result; it runs in a thread until it is stopped.

    Raises:
        InputError: viser is not installed.
    """
    server = start_server(host, port, shown.name)
    set_stage(server, shown.cameras, from_afar=True)
    Viewer(server, shown)
    return server


class Viewer:
    """The panel, and what it shows of a result in the scene."""

    def __init__(self, server: Any, shown: ShownResult):
        self.server, self.shown = server, shown
        gui, last = server.gui, len(shown.looks) - 1
        self.level = gui.add_slider("noise level", 0, max(last, 1), 1, last, visible=last > 0)
        self.title = gui.add_markdown("")
        self.object_seen = gui.add_checkbox("object", True)
        self.cameras_seen = gui.add_checkbox("cameras, with the views", True)
        self.mesh_seen = gui.add_checkbox("mesh", False, visible=shown.mesh is not None)
        self.views = gui.add_image(sheet_of(shown.looks[last].views), label="generated views")
        self.renders = gui.add_image(sheet_of(shown.looks[last].renders), label="object, rendered")
        self.mesh = put_mesh(server.scene, shown.mesh) if shown.mesh is not None else None

        self.show_level()
        self.level.on_update(lambda _: self.show_level())
        for box in (self.object_seen, self.cameras_seen, self.mesh_seen):
            box.on_update(lambda _: self.show_parts())

    def show_level(self) -> None:
        """Puts the level of the slider into the scene and the panel."""
        look: ShownLevel = self.shown.looks[self.level.value]
        with self.server.atomic():  # One frame, or views and object would not match.
            self.object = put_object(self.server.scene, look.gaussians)
            self.cameras = put_cameras(self.server.scene, self.shown.cameras, look.views)
            self.title.content = f"{look.title}: {len(look.gaussians.opacities):,} Gaussians"
            self.views.image, self.renders.image = sheet_of(look.views), sheet_of(look.renders)
            self.show_parts()

    def show_parts(self) -> None:
        """Shows and hides what the boxes say."""
        self.object.visible = self.object_seen.value
        for camera in self.cameras:
            camera.visible = self.cameras_seen.value
        if self.mesh is not None:
            self.mesh.visible = self.mesh_seen.value


def sheet_of(views: UInt8[np.ndarray, "v h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the views in rows of four."""
    rows = [list(views[i : i + SHEET_COLUMNS] / 255) for i in range(0, len(views), SHEET_COLUMNS)]
    return to_bytes(grid(rows))
