"""Drawing meshes, compared with closed forms and with rays cast one by one."""

import numpy as np
import pytest

SIZE, FOV, RADIUS = 64, 49.1, 1.5
FOCAL = 0.5 * SIZE / np.tan(np.deg2rad(FOV) / 2)
SNAP = 0.5 / 256  # Pixels that rounding to the grid moves a corner, along each axis.


@pytest.fixture(scope="module")
def draw():
    """Draws a model of quads and triangles from an azimuth and elevation."""
    from o3d_jax.data.meshes.drawing import draw_orbit, prepare_scene
    from o3d_jax.data.meshes.mesh import ModelContent, to_mesh
    from o3d_jax.geometry.orbits import orbit_poses

    def run(parts, materials, textures=(), azimuth=0.0, elevation=0.0, size=SIZE):
        mesh = to_mesh(ModelContent(list(parts), list(materials), list(textures)), smooth=False)
        poses = orbit_poses(elevation, np.array([azimuth]), RADIUS)
        drawn = draw_orbit(prepare_scene(mesh), poses, FOV, size)
        return drawn.rgba[0], drawn.depth[0], drawn.position[0]

    return run


def quad(corners, material=0, uvs=((0, 1), (1, 1), (1, 0), (0, 0)), alpha=None):
    """Two triangles; corners from the lower left on, counter-clockwise."""
    from o3d_jax.data.meshes.mesh import MeshPart, PerCorner

    faces = np.array([[0, 1, 2], [0, 2, 3]])
    colors = None if alpha is None else PerCorner(np.array([[1, 1, 1, alpha]] * 4, float), faces)
    uvs = PerCorner(np.array(uvs, float), faces)
    return MeshPart(np.array(corners, float), faces, material, None, uvs, colors)


def square(half, z=0.0, **options):
    return quad([[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]], **options)


def plain(base=(1.0, 1.0, 1.0), **options):
    """Not lit, so that the image has the very color."""
    from o3d_jax.data.meshes.mesh import Material

    options = {"lit": False, "two_sided": True, **options}
    return Material(base=(*base, options.pop("alpha", 1.0)), **options)


def project(points):
    """Pixels, of a camera at azimuth and elevation 0."""
    points = np.asarray(points, float)
    x, y, depth = points[..., 0], -points[..., 1], RADIUS - points[..., 2]
    return np.stack([x, y], -1) / depth[..., None] * FOCAL + SIZE / 2


def test_alpha_sums_to_the_area(draw):
    corners = [[-0.31, -0.42, 0.1], [0.47, -0.13, -0.2], [0.05, 0.44, 0.3], [-0.4, 0.2, 0.0]]
    rgba, _, _ = draw([quad(corners)], [plain()])
    p = project(corners)
    x, y = p[:, 0], p[:, 1]
    area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    # 16 samples err by up to 1/16 on each of about 150 pixels of the outline, at random.
    assert rgba[..., 3].sum() / 255 == pytest.approx(area, rel=3e-3)


def scattered():
    inner = np.random.default_rng(0).uniform(-0.5, 0.5, (60, 2))
    return np.concatenate([inner, [[-0.55, -0.55], [0.55, -0.55], [0.55, 0.55], [-0.55, 0.55]]])


def on_samples():
    """A lattice whose edges run through samples, straight and slanted."""
    from o3d_jax.data.meshes.scene import GRID, SAMPLE_X, SAMPLE_Y

    pixels = np.stack(np.meshgrid(np.arange(8.0, 60, 8), np.arange(8.0, 60, 8)), -1).reshape(-1, 2)
    pixels += 0.5 + np.array([SAMPLE_X[5], SAMPLE_Y[5]]) / GRID
    return (pixels - SIZE / 2) * [1, -1] * RADIUS / FOCAL


@pytest.mark.parametrize("points", [scattered, on_samples])
def test_triangles_that_share_edges_share_no_sample_and_leave_none_out(points):
    from scipy.spatial import Delaunay

    from o3d_jax.data.meshes.drawing import prepare_scene
    from o3d_jax.data.meshes.mesh import MeshPart, ModelContent, to_mesh
    from o3d_jax.data.meshes.rasterize import scatter
    from o3d_jax.data.meshes.scene import DISPLAY, MeshView, new_canvas, new_fragments

    flat = points()
    faces = Delaunay(flat).simplices
    corners = np.c_[flat, np.zeros(len(flat))]
    scene = prepare_scene(
        to_mesh(ModelContent([MeshPart(corners, faces, 0)], [plain()], []), smooth=False)
    )
    turned = np.diag([1.0, -1.0, -1.0])
    view = MeshView(turned, np.array([0, 0, RADIUS]), float(FOCAL), SIZE / 2, DISPLAY)
    canvas = new_canvas(SIZE, len(faces))
    scatter(scene.surface, view, canvas, new_fragments(0))
    low, high = np.sort(project(corners[[flat.sum(-1).argmin(), flat.sum(-1).argmax()]]), axis=0)
    first, last = np.ceil(low + SNAP).astype(int), np.floor(high - SNAP).astype(int)
    assert (canvas.owner[first[1] : last[1], first[0] : last[0]] > 0).all()
    together, apart = (canvas.owner > 0).sum(), 0
    for face in range(len(faces)):
        surface = scene.surface._replace(
            **{name: getattr(scene.surface, name)[[face]] for name in MESH_FIELDS}
        )
        alone = new_canvas(SIZE, 1)
        scatter(surface, view, alone, new_fragments(0))
        apart += (alone.owner > 0).sum()
    assert together == apart > 16 * (last - first).prod()


MESH_FIELDS = ("corners", "normals", "uvs", "colors", "material")


def test_what_is_in_front_agrees_with_rays_cast_one_by_one(draw):
    from o3d_jax.data.meshes.mesh import MeshPart

    generator = np.random.default_rng(1)
    middles = generator.uniform(-0.3, 0.3, (14, 1, 3))
    corners = middles + generator.uniform(-0.4, 0.4, (14, 3, 3))
    colors = generator.uniform(0.2, 1, (14, 3))
    parts = [MeshPart(c, np.array([[0, 1, 2]]), i) for i, c in enumerate(corners)]
    # Two sheets in nearly one place yield by which side they show; these show both alike.
    rgba, depth, position = draw(parts, [plain(c) for c in colors])
    ys, xs = np.indices((SIZE, SIZE)) + 0.5
    rays = np.stack([(xs - SIZE / 2) / FOCAL, -(ys - SIZE / 2) / FOCAL, -np.ones_like(xs)], -1)
    nearest, which = np.full((SIZE, SIZE), np.inf), np.full((SIZE, SIZE), -1)
    origin = np.array([0, 0, RADIUS])
    for i, (a, b, c) in enumerate(corners):
        matrix = np.stack([b - a, c - a], -1)[None, None].repeat(SIZE, 0).repeat(SIZE, 1)
        u, v, t = np.moveaxis(
            np.linalg.solve(
                np.concatenate([matrix, -rays[..., None]], -1),
                np.broadcast_to(origin - a, rays.shape)[..., None],
            )[..., 0],
            -1,
            0,
        )
        hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t < nearest)
        nearest[hit], which[hit] = t[hit], i
    from o3d_jax.data.meshes.scene import DISPLAY

    truth = np.zeros((SIZE, SIZE, 3), np.uint8)
    truth[which >= 0] = DISPLAY[np.round(colors * 4095).astype(int)][which[which >= 0]]
    # Away from outlines, where a pixel shows one triangle: the 3 x 3 around it have the same.
    inside = np.zeros((SIZE, SIZE), bool)
    inside[1:-1, 1:-1] = True
    for dy, dx in np.ndindex(3, 3):
        inside[1:-1, 1:-1] &= which[dy : SIZE - 2 + dy, dx : SIZE - 2 + dx] == which[1:-1, 1:-1]
    seen = inside & (which >= 0)
    assert seen.sum() > 500
    assert (np.abs(rgba[seen][:, :3].astype(int) - truth[seen]).max(axis=-1) <= 1).mean() > 0.995
    # But for slivers between the middles of pixels.
    assert (rgba[inside & (which < 0)] == 0).mean() > 0.99
    # Slanted triangles (up to 80 degrees) move by SNAP x depth / FOCAL x tan = 4e-4.
    same = np.abs(depth - nearest)[seen]
    assert np.quantile(same, 0.98) < 1e-3
    point = origin + rays * nearest[..., None]
    assert np.quantile(np.abs(position - point)[seen], 0.98) < 1e-3


def test_textures_are_perspective_correct(draw):
    ramp = np.tile(np.arange(0, 256, dtype=np.uint8)[None, :, None], (4, 1, 4))
    ramp[..., 3] = 255
    from o3d_jax.data.meshes.mesh import TextureUse, Wrap

    material = plain(color=TextureUse(0, Wrap.CLAMP))
    slanted = quad([[-0.5, -0.5, 0.5], [0.5, -0.5, -0.5], [0.5, 0.5, -0.5], [-0.5, 0.5, 0.5]])
    rgba, _, position = draw([slanted], [material], [ramp], size=128)
    whole = rgba[..., 3] == 255
    u = position[..., 0][whole] + 0.5
    expected = np.clip(256 * u - 0.5, 0, 255)
    # Texels are mixed in linear light: up to 1.6 levels from mixing levels at the dark end.
    assert np.abs(rgba[whole][:, 0] - expected).max() < 2.5
    assert np.abs(rgba[whole][:, 0] - expected).mean() < 0.6
    across = rgba[64, whole[64], 0].astype(float)  # An affine map would be even across the image.
    assert abs(across[len(across) // 2] - across.mean()) > 10


def test_every_byte_of_a_texture_comes_back(draw):
    from o3d_jax.data.meshes.mesh import TextureUse, Wrap

    texels = np.zeros((16, 16, 4), np.uint8)
    texels[..., :3] = np.arange(256).reshape(16, 16, 1)
    texels[..., 3] = 255
    # A texel takes 14 x 14 pixels; the rows differ by 16 levels, of which 0.04 is less than one.
    material = plain(color=TextureUse(0, Wrap.CLAMP, Wrap.CLAMP))
    rgba, _, position = draw([square(0.6)], [material], [texels], size=256)
    column, row = (position[..., 0] / 1.2 + 0.5) * 16, (0.5 - position[..., 1] / 1.2) * 16
    middle = (np.abs(column % 1 - 0.5) < 0.2) & (np.abs(row % 1 - 0.5) < 0.04)
    middle &= rgba[..., 3] == 255
    expected = 16 * np.floor(row).astype(int) + np.floor(column).astype(int)
    assert len(np.unique(expected[middle])) > 60
    assert np.abs(rgba[middle][:, 1].astype(int) - expected[middle]).max() <= 1


def test_a_fine_pattern_fades_to_its_mean_light(draw):
    from o3d_jax.data.meshes.mesh import TextureUse
    from o3d_jax.data.meshes.scene import LINEAR

    noise = 255 * np.random.default_rng(2).integers(0, 2, (256, 256)).astype(np.uint8)
    texels = np.dstack([noise, noise, noise, np.full_like(noise, 255)])
    rgba, _, _ = draw([square(0.4)], [plain(color=TextureUse(0))], [texels], size=32)
    inner = LINEAR[rgba[9:23, 9:23, 0]]
    # A pixel sees 14 x 14 texels, a level of the texture has means of 16 x 16 or 8 x 8: of black
    # and white, these have a deviation of 0.03 or 0.06. A texel by itself has one of 0.5.
    assert inner.mean() == pytest.approx(0.5, abs=0.02)  # Of light: a mean of bytes would be 0.21.
    assert inner.std() < 0.07


def test_transparent_layers_are_laid_over_what_is_behind_whatever_their_order(draw):
    from o3d_jax.data.meshes.mesh import AlphaMode
    from o3d_jax.data.meshes.scene import DISPLAY, LINEAR

    red, green, blue = (0.8, 0.1, 0.1), (0.1, 0.6, 0.2), (0.2, 0.2, 0.9)
    materials = [
        plain(red),
        plain(green, alpha=0.5, mode=AlphaMode.BLEND),
        plain(blue, alpha=0.25, mode=AlphaMode.BLEND),
    ]
    layers = [
        square(0.3, -0.1, material=0),
        square(0.3, 0.0, material=1),
        square(0.3, 0.1, material=2),
    ]
    expected = 0.25 * np.array(blue) + 0.75 * (0.5 * np.array(green) + 0.5 * np.array(red))
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        rgba, depth, _ = draw([layers[i] for i in order], materials)
        middle = rgba[SIZE // 2, SIZE // 2]
        assert middle[3] == 255
        np.testing.assert_allclose(LINEAR[middle[:3]], expected, atol=0.004)  # One level.
        assert depth[SIZE // 2, SIZE // 2] == pytest.approx(RADIUS + 0.1, abs=1e-4)  # The solid.
    rgba, depth, _ = draw(layers[1:], materials)
    middle = rgba[SIZE // 2, SIZE // 2]
    assert middle[3] == round(255 * (1 - 0.5 * 0.75))
    over = (0.25 * np.array(blue) + 0.75 * 0.5 * np.array(green)) / (1 - 0.5 * 0.75)
    expected_bytes = DISPLAY[np.round(over * 4095).astype(int)]
    assert (
        np.abs(middle[:3].astype(int) - expected_bytes).max() <= 1
    )  # Straight, not premultiplied.
    assert depth[SIZE // 2, SIZE // 2] == pytest.approx(RADIUS - 0.1, abs=1e-4)
    clear = plain(alpha=0.0, mode=AlphaMode.BLEND)
    assert not any(field.any() for field in draw([square(0.3)], [clear]))


@pytest.mark.parametrize("upright", [False, True])
def test_cut_outs_end_where_alpha_meets_the_cutoff(draw, upright):
    from o3d_jax.data.meshes.mesh import AlphaMode, TextureUse, Wrap

    ramp = np.full((4, 256, 4), 255, np.uint8)
    ramp[..., 3] = np.arange(256)
    if upright:
        ramp = ramp.swapaxes(0, 1)
    use = TextureUse(0, Wrap.CLAMP, Wrap.CLAMP)
    material = plain(color=use, mode=AlphaMode.MASK, cutoff=0.7)
    rgba, _, _ = draw([square(0.5)], [material], [ramp])
    left, right = project([[-0.5, 0, 0], [0.5, 0, 0]])[:, 0]
    edge = left + (right - left) * (0.7 * 255 + 0.5) / 256
    alpha = rgba[..., 3].T if upright else rgba[..., 3]
    widths = alpha[20:44].sum(axis=1) / 255
    # The edge falls within a pixel; samples resolve 1/16 of it.
    np.testing.assert_allclose(widths, right - edge, atol=0.07)


def test_backs_show_unless_a_front_is_near(draw):
    red, green = plain((0.8, 0, 0), two_sided=False), plain((0, 0.8, 0), two_sided=False)
    cloth = square(0.3, 0.0, material=0)
    lining = square(0.3, 0.005, material=1)  # Its back is nearer to a camera behind by 0.005.
    behind, _, _ = draw([cloth], [red], azimuth=180.0)
    assert behind[SIZE // 2, SIZE // 2, 3] == 255
    turned = lining._replace(faces=lining.faces[:, ::-1])
    rgba, depth, _ = draw([turned, cloth], [red, green], azimuth=0.0)
    assert rgba[SIZE // 2, SIZE // 2, 0] > 100  # The cloth, though the lining's back is nearer.
    assert depth[SIZE // 2, SIZE // 2] == pytest.approx(RADIUS, abs=1e-4)
    far = square(0.3, 0.1, material=1)
    far = far._replace(faces=far.faces[:, ::-1])
    rgba, depth, _ = draw([far, cloth], [red, green], azimuth=0.0)
    assert rgba[SIZE // 2, SIZE // 2, 1] > 100
    assert depth[SIZE // 2, SIZE // 2] == pytest.approx(RADIUS - 0.1, abs=1e-4)


def test_a_back_is_lit_as_the_front_of_the_turned_face():
    from o3d_jax.data.meshes.drawing import draw_orbit, prepare_scene
    from o3d_jax.data.meshes.mesh import Material, ModelContent, to_mesh
    from o3d_jax.geometry.orbits import orbit_poses

    sheet = square(0.4)
    turned = sheet._replace(faces=sheet.faces[:, ::-1])
    colors = []
    for part in (sheet, turned):
        mesh = to_mesh(ModelContent([part], [Material()], []), smooth=False)
        drawn = draw_orbit(
            prepare_scene(mesh), orbit_poses(20.0, np.array([0.0, 180]), RADIUS), FOV, 32
        )
        colors.append(drawn.rgba[:, 16, 16, :3].astype(int))
    assert np.abs(colors[0] - colors[1]).max() <= 1
    assert (np.array(colors) > 150).all()  # White in even light; no side is dark.


def test_white_is_bright_everywhere_and_blown_out_nowhere(draw):
    from o3d_jax.data.meshes.drawing import BRIGHTEST
    from o3d_jax.data.meshes.mesh import Material, MeshPart, PerCorner
    from o3d_jax.data.meshes.scene import DISPLAY

    phi, theta = np.meshgrid(np.linspace(0, 2 * np.pi, 65), np.linspace(0, np.pi, 33))
    points = 0.5 * np.stack(
        [np.sin(theta) * np.cos(phi), np.cos(theta), np.sin(theta) * np.sin(phi)], -1
    )
    at = np.arange(33 * 65).reshape(33, 65)
    a, b, c, d = at[:-1, :-1], at[:-1, 1:], at[1:, 1:], at[1:, :-1]
    faces = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)
    flat = points.reshape(-1, 3)
    ball = MeshPart(flat, faces, 0, PerCorner(flat / 0.5, faces))
    shades = []
    for elevation in (-80.0, 0.0, 80.0):
        rgba, _, _ = draw([ball], [Material(two_sided=True)], elevation=elevation)
        whole = rgba[rgba[..., 3] == 255]
        assert (np.ptp(whole[:, :3].astype(int), axis=-1) == 0).all()  # White light.
        shades.append(whole[:, 0])
    every = np.concatenate(shades)
    brightest = int(DISPLAY[round(BRIGHTEST * 4095)])
    assert every.min() > 165 and brightest - 5 <= every.max() <= brightest < 255
    assert shades[2].mean() > shades[0].mean() + 15  # More light from above.


def test_black_reflects_a_little_white(draw):
    from o3d_jax.data.meshes.mesh import Material
    from o3d_jax.data.meshes.scene import LINEAR

    white, black = (
        LINEAR[draw([square(0.3)], [Material(base=(c, c, c, 1.0))])[0][32, 32, :3]]
        for c in (1.0, 0.0)
    )
    # A byte at the dark end is 0.001 of light.
    np.testing.assert_allclose(black, 0.015 * white, atol=0.001)


def test_surfaces_shadow_others_but_not_themselves(draw):
    from o3d_jax.data.meshes.mesh import Material

    floor = quad([[-0.5, -0.2, 0.5], [0.5, -0.2, 0.5], [0.5, -0.2, -0.5], [-0.5, -0.2, -0.5]])
    lid = floor._replace(positions=0.3 * floor.positions + [-0.3, 0.0, 0.0])
    lit = Material(two_sided=True)
    bare, _, _ = draw([floor], [lit], elevation=50.0, size=96)
    shade = bare[bare[..., 3] == 255][:, 0].astype(int)
    assert np.ptp(shade) <= 1  # Even: no stripes of a surface in its own shadow.
    rgba, _, position = draw([floor, lid], [lit], elevation=50.0, size=96)
    x, y, z = np.moveaxis(position, -1, 0)
    ground = (rgba[..., 3] == 255) & (np.abs(y + 0.2) < 1e-3)
    below = ground & (np.abs(x + 0.3) < 0.1) & (z > 0.04) & (z < 0.12)  # What the lid leaves free.
    away = ground & (x > 0.35)
    assert below.sum() > 10
    assert rgba[below][:, 0].max() < shade.mean() - 20
    assert rgba[away][:, 0].min() > shade.mean() - 10


def test_box_corners_reproject_onto_the_silhouette(draw):
    from o3d_jax.data.meshes.mesh import MeshPart
    from o3d_jax.geometry.orbits import orbit_poses

    corners = np.array(np.meshgrid([-0.3, 0.3], [-0.2, 0.2], [-0.25, 0.25])).reshape(3, -1).T
    faces = np.array([[a, b, c] for a in range(8) for b in range(8) for c in range(8)])
    flat = np.abs(corners[faces].max(axis=1) - corners[faces].min(axis=1)).min(axis=-1) == 0
    box = MeshPart(corners, faces[flat & (np.ptp(faces, axis=1) > 0)], 0)
    rgba, _, position = draw([box], [plain()], azimuth=30.0, elevation=20.0, size=512)
    pose = orbit_poses(20.0, np.array([30.0]), RADIUS)[0]
    local = (corners - pose[:3, 3]) @ pose[:3, :3]
    pixels = local[:, :2] / local[:, 2:] * 256 / np.tan(np.deg2rad(FOV) / 2) + 256
    rows, columns = np.nonzero(rgba[..., 3])
    bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    expected = np.concatenate([pixels.min(axis=0), pixels.max(axis=0)])
    assert np.abs(bounds - expected).max() < 1.0  # A pixel is counted if any of it is covered.
    seen = position[rgba[..., 3] == 255]
    assert (np.abs(seen) <= np.abs(corners).max(axis=0) + 1e-3).all()


def test_a_canvas_is_empty_after_each_frame():
    from o3d_jax.data.meshes.drawing import draw_orbit, prepare_scene
    from o3d_jax.data.meshes.mesh import AlphaMode, ModelContent, to_mesh
    from o3d_jax.geometry.orbits import orbit_poses

    parts = [square(0.3, material=0), square(0.4, 0.2, material=1)]
    materials = [plain((0.5, 0.5, 0.5)), plain(alpha=0.3, mode=AlphaMode.BLEND)]
    scene = prepare_scene(to_mesh(ModelContent(parts, materials, []), smooth=False))
    poses = orbit_poses(10.0, np.array([0.0, 90.0, 200.0]), RADIUS)
    together = draw_orbit(scene, poses, FOV, 32)
    for i in range(3):
        alone = draw_orbit(scene, poses[i : i + 1], FOV, 32)
        for one, all_of_them in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], all_of_them[i])
