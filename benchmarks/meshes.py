"""Meshes beside the true ones: `python benchmarks/meshes.py --scans RENDERED MODELS`.

    [--unseen RENDERED MODELS]  another set; its first ten objects, one a family
    [--weights MODEL]           default: the bundled model
    [--only-figures]            without contact sheets

RENDERED is what `o3d data render MODELS RENDERED` wrote. Of each object's first orbit the model
makes Gaussians twice: from its first frame, as sample.py does, and by LGM alone from true views.
Both become meshes in two ways: by their density, as `o3d mesh` does, and by fusing the mean depth
of renders into a truncated signed distance (Curless and Levoy 1996). Writes results/meshes.md, and
a contact sheet of each set. About 20 processor seconds an object.
"""

import dataclasses
import zlib
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import trimesh
import tyro
from jaxtyping import Array, Float
from tqdm import tqdm

from o3d_jax.cli import use_compilation_cache
from o3d_jax.config import Config
from o3d_jax.data.meshes.drawing import draw_orbit, prepare_scene
from o3d_jax.data.meshes.reading import read_mesh
from o3d_jax.errors import InputError, exit_on_input_error
from o3d_jax.evaluation.data import OrbitName, SeenObject, choose_orbits, read_sample, read_seen
from o3d_jax.evaluation.protocol import ObjectsProtocol, Protocol, read_protocol
from o3d_jax.evaluation.scores import NO_SHAPE, ShapeScore
from o3d_jax.evaluation.shapes import TrueShape, TrueShapes, shape_score
from o3d_jax.files.images import on_white, save_png
from o3d_jax.geometry.orbits import pinhole, relative_poses
from o3d_jax.geometry.released import as_drawn
from o3d_jax.media.sheets import grid
from o3d_jax.meshing.colored import ColoredMesh, MeshPlan, mesh_of_gaussians
from o3d_jax.meshing.field import DensityField, density_field
from o3d_jax.meshing.glb import write_glb
from o3d_jax.meshing.silhouettes import FOV, surround
from o3d_jax.meshing.surface import extract_surface, vertex_normals
from o3d_jax.nn.networks import Ouroboros, apply, build_networks
from o3d_jax.splat import render
from o3d_jax.steps.sample import generate
from o3d_jax.types import Cameras, Gaussians
from o3d_jax.weights.checkpoint import BUNDLED, load_model

RESULTS = Path(__file__).parent / "results"
UNSEEN = 10
"""Objects of the set that has many."""
TRUNCATION = 4.0
"""Steps of the grid, of the signed distance."""
FUSED_VIEWS, FUSED_SIZE = 11, 128
"""Depth maps that are fused, and their pixels along a side."""
SHOWN = 3
"""Views of an object on the sheet."""
METHODS = ("density", "fused depth")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    scans: tuple[Path, Path] | None = None
    """Folders of orbits and of the models they show; all of them are measured."""
    unseen: tuple[Path, Path] | None = None
    """The same of many models, of which ten are measured."""
    weights: Path = BUNDLED / "nano"
    """Folder with a model."""
    only_figures: bool = False
    """Leave contact sheets out."""


class Row(NamedTuple):
    set_name: str
    name: str
    source: str
    method: str
    score: ShapeScore[float]
    watertight: bool
    bodies: int
    faces: int


def load(folder: Path) -> Ouroboros:
    found = load_model(folder)
    weights = jax.device_put(found.weights)
    networks = build_networks(found.config.model)
    return Ouroboros(
        networks=networks, config=found.config, params=weights.params, frozen=weights.frozen
    )


@jax.jit
def lgm_of_views(
    model: Ouroboros, images: Float[Array, "1 v h w 3"], cameras: Cameras
) -> Gaussians:
    """LGM as it is trained on clean views: c_noise = 0."""
    return apply(model.networks.lgm, model.params.lgm, images, cameras, jnp.zeros(1))


def both_sources(model: Ouroboros, root: Path, orbit: OrbitName) -> dict[str, Gaussians]:
    """Gaussians in the world of the method, by where they come from."""
    protocol = read_protocol("orbits")
    sample = read_sample(root, orbit, protocol, model.config)
    key = jax.random.fold_in(jax.random.key(0), zlib.crc32(orbit.orbit_name.encode()))
    made = generate(model, jnp.asarray(sample.image)[None], sample.cameras, key)
    seen = lgm_of_views(model, jnp.asarray(sample.truth)[None], sample.cameras)
    norm = model.config.model.lgm.rotation_norm
    found = {"sampled": made.reconstruction.gaussians, "LGM of true views": seen}
    return {k: as_drawn(jax.tree.map(lambda a: a[0], g), norm) for k, g in found.items()}


def mesh_by(method: str, gaussians: Gaussians) -> ColoredMesh:
    if method == "density":
        return mesh_of_gaussians(gaussians)
    plan = MeshPlan()
    field = density_field(gaussians, plan.resolution)
    fused = extract_surface(fuse_depth(gaussians, field), 1.0, plan.faces)
    colors = field.color_at(fused.vertices)
    return ColoredMesh(*fused, vertex_normals(fused), colors, None, 1.0)


draw_mean_depth = jax.jit(render, static_argnums=2)


def fuse_depth(gaussians: Gaussians, field: DensityField) -> DensityField:
    """1 minus the mean truncated signed distance: above 1 inside; what no camera sees is inside."""
    around = surround(field, FUSED_VIEWS)
    cameras = Cameras(
        camera_to_world=jnp.asarray(around.poses, jnp.float32),
        intrinsics=jnp.asarray(np.tile(pinhole(FOV), (FUSED_VIEWS, 1, 1)), jnp.float32),
    )
    drawn = draw_mean_depth(gaussians, cameras, (FUSED_SIZE, FUSED_SIZE), jnp.zeros(3))
    alpha = np.asarray(drawn.alpha)[..., 0]
    depths = np.where(alpha > 0.5, np.asarray(drawn.depth)[..., 0] / alpha.clip(0.5), np.inf)
    shape = field.density.shape
    points = field.origin + field.spacing * np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 3)
    total, count = np.zeros(len(points)), np.zeros(len(points))
    focal = 0.5 * FUSED_SIZE / np.tan(np.deg2rad(FOV) / 2)
    for pose, depth in zip(around.poses, depths, strict=True):
        x, y, z = ((points - pose[:3, 3]) @ pose[:3, :3]).T
        column, row = (np.floor(focal * u / z + FUSED_SIZE / 2).astype(int) for u in (x, y))
        inside = (np.minimum(row, column) >= 0) & (np.maximum(row, column) < FUSED_SIZE)
        there = depth[row.clip(0, FUSED_SIZE - 1), column.clip(0, FUSED_SIZE - 1)]
        distance = (there - z) / (TRUNCATION * field.spacing)
        known = inside & (distance > -1)
        total += np.where(known, distance.clip(-1, 1), 0)
        count += known
    mean = np.where(count > 0, total / np.maximum(count, 1), -1).reshape(shape)
    density = (1 - mean).astype(np.float32)
    for axis in range(3):
        np.moveaxis(density, axis, 0)[[0, -1]] = 0
    return DensityField(density, field.weighted_colors, field.origin, field.spacing)


def measure(
    mesh: ColoredMesh | None, truth: TrueShape, seen: SeenObject
) -> tuple[ShapeScore[float], trimesh.Trimesh]:
    if mesh is None:
        return NO_SHAPE, trimesh.Trimesh()
    body = trimesh.Trimesh(mesh.vertices, mesh.faces)
    return shape_score(mesh.vertices, mesh.faces, truth, seen), body


def chosen_orbits(root: Path, most: int | None) -> list[OrbitName]:
    """The first orbit of each object; of many, the first of `most` families spread over all."""
    orbits = choose_orbits(root, ObjectsProtocol(orbits=(0,)))
    if most is None:
        return orbits
    families = {}
    for orbit in orbits:
        families.setdefault("_".join(orbit.object_name.split("_")[:4]), orbit)
    some = list(families.values())
    return [some[i] for i in np.linspace(0, len(some) - 1, most).round().astype(int)]


def run_set(
    model: Ouroboros, name: str, folders: tuple[Path, Path], most: int | None
) -> tuple[list[Row], list[list[Float[np.ndarray, "h w 3"]]]]:
    root, models = folders
    truths, protocol = TrueShapes(models, root), read_protocol("orbits")
    rows, pictures = [], []
    for orbit in tqdm(chosen_orbits(root, most), desc=name, unit="object"):
        truth, seen = truths.of(orbit.object_name), read_seen(root, orbit, protocol, model.config)
        shown = first_views(root, orbit, protocol, model.config)
        for source, gaussians in both_sources(model, root, orbit).items():
            for method in METHODS:
                try:
                    mesh = mesh_by(method, gaussians)
                except InputError:
                    mesh = None
                score, body = measure(mesh, truth, seen)
                rows.append(
                    Row(
                        *(name, orbit.object_name, source, method, score),
                        bool(mesh and body.is_watertight),
                        int(body.body_count) if mesh else 0,
                        len(body.faces),
                    )
                )
                if mesh is not None:
                    shown += drawn_views(mesh, seen)
        pictures.append(shown)
    return rows, pictures


def spread(count: int) -> list[int]:
    return [k * count // SHOWN for k in range(SHOWN)]


def first_views(
    root: Path, orbit: OrbitName, protocol: Protocol, config: Config
) -> list[Float[np.ndarray, "h w 3"]]:
    truth = read_sample(root, orbit, protocol, config).truth
    return [truth[i] for i in spread(len(truth))]


def drawn_views(mesh: ColoredMesh, seen: SeenObject) -> list[Float[np.ndarray, "h w 3"]]:
    """Through the file, as others would see it."""
    path = RESULTS / "meshes.tmp.glb"
    write_glb(path, mesh)
    scene = prepare_scene(read_mesh(path, 2**30))
    path.unlink()
    poses = relative_poses(seen.poses)[spread(len(seen.poses))]
    return list(on_white(draw_orbit(scene, poses, seen.fov, 96).rgba))


def report(rows: list[Row], model: Ouroboros, weights: Path) -> str:
    lines = [
        "# Meshes\n",
        f"Made by `python benchmarks/meshes.py` with {model.config.name} "
        f"(`{(weights / 'checksum').read_text().strip()[:12]}`): see its first lines for the two "
        "sources and the two methods. IoU is of silhouettes in the orbit's eight frames; Chamfer "
        "distance in percent of the true mesh's diagonal; F-score at 1 % of it. Watertight and in "
        "one body: as trimesh says, of how many.\n",
        "| set | Gaussians | method | IoU | Chamfer, % | F-score | watertight | one body |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups = defaultdict(list)
    for row in rows:
        groups[row.set_name, row.source, row.method].append(row)
    for key, own in groups.items():
        means = np.mean([row.score.values() for row in own], axis=0)
        single = sum(row.bodies == 1 for row in own)
        lines.append(
            f"| {' | '.join(key)} | {means[0]:.3f} | {means[1]:.2f} | {means[2]:.3f} | "
            f"{sum(row.watertight for row in own)} of {len(own)} | {single} of {len(own)} |"
        )
    lines += ["", "## Each object, by density", ""]
    lines += ["| object | Gaussians | IoU | Chamfer, % | F-score | watertight | bodies | faces |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for row in rows:
        if row.method == "density":
            iou, chamfer, fscore = row.score.values()
            lines.append(
                f"| {row.name} | {row.source} | {iou:.3f} | {chamfer:.2f} | {fscore:.3f} | "
                f"{'yes' if row.watertight else 'no'} | {row.bodies} | {row.faces} |"
            )
    return "\n".join(lines) + "\n"


def sheet(rows: list[Row], pictures: list[list[Float[np.ndarray, "h w 3"]]]) -> np.ndarray:
    heads = ["true", *(f"{s}, {m}" for s in ("sampled", "LGM") for m in METHODS)]
    columns = [head if not i else "" for head in heads for i in range(SHOWN)]
    names = dict.fromkeys(row.name for row in rows)
    return grid(pictures, [name.split("__")[-1][-20:] for name in names], columns, 72, 72)


@exit_on_input_error()
def main() -> None:
    order = tyro.cli(Benchmark, description=__doc__)
    if order.scans is None and order.unseen is None:
        raise InputError("nothing to measure; give --scans or --unseen RENDERED MODELS")
    use_compilation_cache()
    model, rows = load(order.weights), []
    for name, folders, most in (("unseen", order.unseen, UNSEEN), ("scans", order.scans, None)):
        if folders is not None:
            found, pictures = run_set(model, name, folders, most)
            rows += found
            if not order.only_figures:
                save_png(RESULTS / f"meshes_{name}.png", sheet(found, pictures))
    (RESULTS / "meshes.md").write_text(report(rows, model, order.weights))


if __name__ == "__main__":
    main()
