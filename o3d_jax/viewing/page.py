"""One HTML file that shows a result in any browser, from disk and without a network.

viser's client is one file, 0.8 MB compressed, and plays recordings of a scene that are put into it.
So the page is that client and a recording, of the result, or of all its noise levels in turn.

The client sorts Gaussians by depth in a worker, which it starts as a module. Chromium refuses that
to pages without an origin, as those from disk and frames in them, and then draws them in any order
(viser 1.1). There the page therefore starts it as a classic worker, in which `import.meta` has to
have another name.
"""

import html
from pathlib import Path

from o3d_jax.files.atomic import written_whole
from o3d_jax.viewing.library import start_server, stop_server
from o3d_jax.viewing.scene import put_cameras, put_mesh, put_object, set_stage
from o3d_jax.viewing.shown import ShownResult

OPENED_FROM_DISK = """<script>
if (self.origin === "null") {
  const OldBlob = Blob, OldWorker = Worker;
  const classic = (part) =>
    typeof part === "string" ? part.replaceAll("import.meta.url", "self.location.href") : part;
  window.Blob = class extends OldBlob {
    constructor(parts, options) {
      const isScript = /javascript/.test(options?.type ?? "");
      super(isScript ? parts.map(classic) : parts, options);
    }
  };
  window.Worker = class extends OldWorker {
    constructor(url, options) { super(url, { ...options, type: "classic" }); }
  };
}
</script>"""

SECONDS_A_LEVEL = 0.4
SECONDS_AT_THE_END = 3.0


def page_of(shown: ShownResult, with_levels: bool, with_cameras: bool) -> str:
    """Returns the page: the result, or all noise levels in turn, with the cameras or without.

    Raises:
        InputError: viser is not installed.
    """
    server = start_server("127.0.0.1", 0, shown.name)
    try:
        set_stage(server, shown.cameras, from_afar=with_cameras)
        recording = server.get_scene_serializer()
        for look in shown.looks if with_levels else shown.looks[-1:]:
            put_object(server.scene, look.gaussians)
            if with_cameras:
                put_cameras(server.scene, shown.cameras, look.views)
            if with_levels:
                recording.insert_sleep(SECONDS_A_LEVEL)
        if shown.mesh is not None:
            put_mesh(server.scene, shown.mesh).visible = False
        if with_levels:
            recording.insert_sleep(SECONDS_AT_THE_END)
        return _finished(recording.as_html(), shown.name)
    finally:
        stop_server(server)


def write_page(path: Path, shown: ShownResult, with_levels: bool, with_cameras: bool) -> None:
    """Writes the page, whole or not at all."""
    page = page_of(shown, with_levels, with_cameras)
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _finished(page: str, name: str) -> str:
    """With its title, and what it needs to be opened from disk."""
    page = page.replace("<title>Viser</title>", f"<title>{html.escape(name)}</title>", 1)
    return page.replace("<head>", f"<head>{OPENED_FROM_DISK}", 1)
