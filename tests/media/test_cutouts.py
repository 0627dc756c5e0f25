"""Alpha as people's pictures have it: halos, cards, windows, dust; and masks."""

import numpy as np
import pytest
from PIL import Image

from o3d_jax.errors import InputError
from o3d_jax.media.foreground import extract_foreground, read_foreground, recenter_on_white
from support.pictures import GREEN, ORANGE, WHITE, disc, over

BEIGE = (0.9, 0.84, 0.75)
CENTER, RADIUS = (57.3, 79.6), 24.0


def distance(height=120, width=150):
    y, x = np.mgrid[:height, :width] + 0.5
    return np.hypot(y - CENTER[0], x - CENTER[1])


def cut(alpha):
    """An orange disc, blended along its edge, in a picture of this alpha around it."""
    coverage = disc(*alpha.shape, CENTER, RADIUS)
    rgb = over(coverage, ORANGE, (0.2, 0.4, 0.2))[..., :3]
    return np.concatenate([rgb, np.maximum(coverage, alpha)[..., None]], axis=-1)


NOTHING = np.zeros((120, 150), np.float32)
REFERENCE = recenter_on_white(cut(NOTHING), 64)
HALOS = {
    "1 / r": 0.45 * RADIUS / distance().clip(RADIUS),
    "steep": (0.49 * (1 - (distance() - RADIUS) / 12)).clip(0, 0.49),
    "haze of 12": np.full_like(NOTHING, 12 / 255),
    "even": np.where(distance() < 50, 0.3, 0.0),
    "to the edge": np.full_like(NOTHING, 0.3),
    "shadow": 0.4 * np.exp(-(np.hypot(*np.mgrid[-70:50, -90:60] / 25.0) ** 2)),
}


@pytest.mark.parametrize("kind", HALOS)
def test_what_is_soft_around_an_object_neither_shrinks_it_nor_shows(kind):
    halo = HALOS[kind].astype(np.float32)
    found = extract_foreground(cut(halo))
    # Where the disc's edge blends, the halo may shine through: some tenths, in a ring of a pixel.
    # A haze does so in two pixels beside it, by its 12 / 255 of a contrast of 0.8.
    difference = np.abs(recenter_on_white(found.rgba, 64) - REFERENCE).max(axis=-1)
    assert np.quantile(difference, 0.9) < 0.04 and difference.max() < 0.5
    faint = kind == "haze of 12"  # As good as nothing.
    assert (found.note is None) == faint and (faint or "was left out" in found.note)


def test_a_halo_that_is_hardly_soft_shows_but_does_not_shrink_the_object():
    halo = (0.75 * (1 - (distance() - RADIUS) / 25)).clip(0, 0.75).astype(np.float32)
    square = recenter_on_white(extract_foreground(cut(halo)).rgba, 64)
    inside = (np.hypot(*(np.mgrid[:64, :64] + 0.5 - 32)) < 0.8 * 32 - 2)[..., None]
    np.testing.assert_allclose(square * inside, REFERENCE * inside, atol=0.01)
    assert (square[20, 2] < 0.9).all()


def test_alpha_that_cuts_an_object_out_is_kept_as_it_is():
    """Blends along edges, also those of holes and thin parts; and windows."""
    rgba = cut(NOTHING)
    rgba[..., 3] -= disc(120, 150, CENTER, 7.4)
    rgba[40:50, 80:95, 3] = 0.3  # A window in the disc.
    rgba[57, 103:130] = (0, 0, 0, 0.6)  # A wire of less than a pixel.
    found = extract_foreground(rgba)
    np.testing.assert_array_equal(found.rgba, rgba)
    assert found.note is None


def test_an_object_that_is_translucent_all_over_is_whole():
    rgba = cut(NOTHING)
    np.testing.assert_allclose(
        extract_foreground(rgba * np.float32([1, 1, 1, 0.3])).rgba, rgba, atol=1e-6
    )


def test_dust_neither_shows_nor_moves_the_object():
    rgba = cut(NOTHING)
    dusty = rgba.copy()
    dusty[[3, 110], [140, 4]] = (0, 0, 0, 1)
    np.testing.assert_array_equal(extract_foreground(dusty).rgba[..., 3], rgba[..., 3])
    np.testing.assert_array_equal(recenter_on_white(dusty, 64), REFERENCE)


def card(height=120, width=150):
    """An orange disc on beige, opaque."""
    return over(disc(height, width, CENTER, RADIUS), ORANGE, BEIGE)


def corners_cut(rgba, radius):
    """With round corners of alpha, blended along their edges."""
    height, width = rgba.shape[:2]
    y = np.abs(np.mgrid[:height, :width][0] + 0.5 - height / 2) - height / 2 + radius
    x = np.abs(np.mgrid[:height, :width][1] + 0.5 - width / 2) - width / 2 + radius
    away = np.hypot(y.clip(0), x.clip(0)) - radius
    rgba[..., 3] = (0.5 - away).clip(0, 1)
    return rgba


def one_hole(rgba):
    rgba[0, 0, 3] = 0
    return rgba


def everywhere_254(rgba):
    rgba[..., 3] = 254 / 255
    return rgba


def window(rgba, darkest=0.5):
    """With an outline and round corners, in a larger picture, on its shadow."""
    rgba[[0, -1], :, :3] = rgba[:, [0, -1], :3] = 0.3
    outside = np.pad(corners_cut(rgba, 9), ((30, 40), (35, 35), (0, 0)))
    y, x = np.mgrid[-80:110, -110:110]
    away = np.hypot((np.abs(y) - 50).clip(0), (np.abs(x) - 65).clip(0))
    shadow = (darkest * np.exp(-((away / 14) ** 2))).astype(np.float32)
    outside[..., 3] = np.maximum(outside[..., 3], shadow)
    return outside


def clear_border(rgba):
    rgba[[0, -1], :, 3] = rgba[:, [0, -1], 3] = 0
    return rgba


CARDS = {
    "round corners": lambda rgba: corners_cut(rgba, 12),
    "one hole": one_hole,
    "254 everywhere": everywhere_254,
    "a clear border of one pixel": clear_border,
    "a window and its shadow": window,
    "a window and its dark shadow": lambda rgba: window(rgba, 0.75),
}


@pytest.mark.parametrize("made", CARDS.values(), ids=CARDS)
def test_of_an_opaque_rectangle_with_a_plain_border_the_object_remains(made):
    expected = recenter_on_white(extract_foreground(card()).rgba, 64)
    found = extract_foreground(made(card()))
    np.testing.assert_allclose(recenter_on_white(found.rgba, 64), expected, atol=0.01)
    assert "plain border was taken for background" in found.note


def test_what_is_clear_within_an_object_on_a_card_stays_clear():
    rgba = corners_cut(card(), 12)
    rgba[50:60, 75:85, 3] = 0
    alpha = extract_foreground(rgba).rgba[..., 3]
    assert (alpha[50:60, 75:85] == 0).all() and alpha[70, 80] == 1 and alpha[5, 80] == 0


def test_a_brick_cut_out_is_no_card_and_a_painted_one_is_kept_with_a_word():
    brick = np.zeros((60, 70, 4), np.float32)
    brick[10:40, 20:61] = (*ORANGE, 1)
    found = extract_foreground(brick)
    np.testing.assert_array_equal(found.rgba, brick)
    assert found.note is None
    brick[10:40, 20:61, :3] = np.random.default_rng(0).uniform(size=(30, 41, 3))
    found = extract_foreground(brick)
    np.testing.assert_array_equal(found.rgba, brick)
    assert "rectangle with a busy border, and was kept" in found.note


def test_a_card_thinner_than_its_outline_may_be_is_a_plain_one():
    """As of a damaged file: a line of 3 x 400 pixels, some of which are clear."""
    line = np.ones((3, 400, 4), np.float32)
    line[1, 50:90, :3], line[0, 4::8, 3] = 0, 0
    np.testing.assert_array_equal(extract_foreground(line).rgba[1, 60:80, 3], 1)


@pytest.mark.parametrize("made", [lambda rgba: corners_cut(rgba, 12), clear_border])
def test_a_photograph_with_round_corners_or_a_clear_border_is_as_busy_as_without(made):
    photograph = np.random.default_rng(3).uniform(size=(120, 150, 4)).astype(np.float32)
    photograph[..., 3] = 1
    with pytest.raises(InputError, match="the background is busy"):
        extract_foreground(made(photograph))


GRADIENTS = {
    "a lamp from above": lambda y, x: 1 - 0.22 * y,
    "steep": lambda y, x: 1 - 0.7 * x,
    "corners in the dark": lambda y, x: 1 - 0.5 * ((x - 0.4) ** 2 + (y - 0.5) ** 2),
}


@pytest.mark.parametrize("shade", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize("touching", [False, True])
def test_a_background_may_change_its_color_smoothly(shade, touching):
    center = (112, 79.6) if touching else CENTER  # The lower edge, by a third.
    coverage = disc(120, 150, center, RADIUS)
    y, x = np.mgrid[:120, :150] / np.array([120, 150]).reshape(2, 1, 1)
    picture = over(coverage, ORANGE, (0, 0, 0))
    tint = np.array([0.95, 0.9, 1.0]) * shade(y, x)[..., None] * (1 - coverage)[..., None]
    picture[..., :3] = np.round((picture[..., :3] + tint) * 255) / 255
    alpha = extract_foreground(picture.astype(np.float32)).rgba[..., 3]
    # Blends closer to the background than its tolerance of 0.06 count as background: of the
    # least contrast in any channel, 0.4 here. So do those near the edge of the picture.
    np.testing.assert_allclose(alpha, coverage, atol=0.2)
    assert (alpha[coverage == 0] == 0).all() and (alpha[coverage == 1] == 1).mean() > 0.99


def test_what_compression_adds_to_a_background_that_changes_goes_with_it(tmp_path):
    coverage, shade = disc(120, 150, CENTER, RADIUS), 0.9 - 0.25 * np.mgrid[:120, :150][1] / 150
    picture = over(coverage, ORANGE, (0, 0, 0))[..., :3] + ((1 - coverage) * shade)[..., None]
    pixels = Image.fromarray(np.round(picture * 255).astype(np.uint8))
    pixels.save(tmp_path / "a.jpg", quality=60)
    alpha = read_foreground(tmp_path / "a.jpg").rgba[..., 3]
    # Blocks of 8 pixels ring; what remains of that is near, and less than a pixel all around.
    assert alpha[distance() > RADIUS + 8].max() == 0
    assert np.abs(alpha.sum() / coverage.sum() - 1) < 2 / RADIUS


def framed(rgba):
    return np.pad(rgba[2:-2, 2:-2], ((2, 2), (2, 2), (0, 0))) + np.float32([0, 0, 0, 1])


def with_bars(rgba):
    return np.pad(rgba, ((20, 30), (0, 0), (0, 0))) + np.float32([0, 0, 0, 1])


@pytest.mark.parametrize("made", [framed, with_bars])
def test_a_frame_and_bars_are_no_background_of_the_picture_in_them(made):
    expected = recenter_on_white(extract_foreground(card()).rgba, 64)
    found = extract_foreground(made(card()).clip(0, 1))
    np.testing.assert_allclose(recenter_on_white(found.rgba, 64), expected, atol=0.01)


def test_a_picture_that_fades_out_to_a_side_is_a_card_all_the_same():
    rgba = card()
    rgba[..., 3] = 1 - 0.4 * np.linspace(0, 1, 150, dtype=np.float32)
    alpha = extract_foreground(rgba).rgba[..., 3]
    inside, outside = distance() < RADIUS - 1, distance() > RADIUS + 1
    assert alpha[inside].min() > 0.6 and alpha[outside].max() == 0


def test_specks_of_more_alpha_than_the_object_has_make_no_difference():
    rgba = np.zeros((100, 100, 4), np.float32)
    rgba[10:90, 10:90] = (*ORANGE, 0.6)
    rgba[2:98:16, 2] = rgba[2:98:16, 97] = (*ORANGE, 1)
    alpha = extract_foreground(rgba).rgba[..., 3]
    assert (alpha[10:90, 10:90] == np.float32(0.6)).all() and alpha.sum() < 0.601 * 6400


def test_a_floor_is_told_from_an_object_by_no_rule_and_said():
    rgba = card()
    rgba[70:, :, :3] = np.where(distance()[70:, :, None] < RADIUS, rgba[70:, :, :3], 0.3)
    assert "reaches three sides" in extract_foreground(rgba).note


def test_what_remains_of_a_background_that_is_not_plain_is_said():
    """As of the checkerboard that programs draw for transparency, saved with it."""
    coverage, (y, x) = disc(120, 150, CENTER, RADIUS), np.mgrid[:120, :150] // 10
    picture = over(coverage, ORANGE, WHITE)
    picture[..., :3] *= np.where((coverage < 0.5) & ((y + x) % 2 == 0), 0.8, 1)[..., None]
    found = extract_foreground(picture.astype(np.float32))
    assert "reaches all four sides" in found.note and "give --mask" in found.note
    assert extract_foreground(over(coverage, ORANGE, WHITE)).note is None


def test_an_object_that_touches_most_of_an_even_border_does_not_make_it_busy():
    """A bust: from one side to the other, and the whole lower edge."""
    coverage = np.zeros((90, 110), np.float32)
    coverage[38:], coverage[20:40, 40:75] = 1, 1
    touched = over(coverage, ORANGE, WHITE)
    touched[46:, 50:, :3] = (0.1, 0.1, 0.4)  # No color of the object has the most of the border.
    np.testing.assert_array_equal(extract_foreground(touched).rgba[..., 3], coverage)
    # Of an object of one color, more of the border has that than is white.
    touched = over(coverage, ORANGE, WHITE)
    np.testing.assert_array_equal(extract_foreground(touched).rgba[..., 3], coverage)
    sky = np.random.default_rng(5).normal(0.7, 0.05, (90, 110, 3)).astype(np.float32).clip(0, 1)
    touched[..., :3] = np.where(coverage[..., None] > 0, touched[::-1, ::-1, :3] ** 2, sky)
    touched[38:, :, :3] *= np.random.default_rng(6).uniform(0.2, 1, (52, 110, 1))
    with pytest.raises(InputError, match="the background is busy"):
        extract_foreground(touched.astype(np.float32))


@pytest.fixture
def photograph(tmp_path):
    pixels = np.random.default_rng(3).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def saved(path, alpha, mode="L"):
    gray = Image.fromarray(np.round(alpha * 255).astype(np.uint8))
    if mode == "RGBA":
        colored = Image.new("RGBA", gray.size, "red")
        colored.putalpha(gray)
        gray = colored
    gray.save(path)
    return path


@pytest.mark.parametrize("mode", ["L", "RGBA"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_mask_says_where_the_object_is_whatever_its_size(photograph, tmp_path, mode, times):
    coverage = disc(60, 80, (22, 30), 15)
    large = disc(60 * times, 80 * times, (22 * times, 30 * times), 15 * times)
    found = read_foreground(photograph, saved(tmp_path / "mask.png", large, mode))
    pixels = np.asarray(Image.open(photograph), np.float32) / 255
    np.testing.assert_array_equal(found.rgba[..., :3], pixels)
    # Of the same size, 8 bits; of another, where the edge is filtered.
    atol = 0.5 / 255 if times == 1 else 0.15
    np.testing.assert_allclose(found.rgba[..., 3], coverage, atol=atol + 1e-6)


@pytest.mark.parametrize("kind", ["red", "gray", "0 and 1", "254 everywhere", "one hole"])
def test_a_mask_means_the_same_in_all_ways_to_save_it(photograph, tmp_path, kind):
    coverage = np.round(disc(60, 80, (22, 30), 15))
    made = np.dstack([255 * coverage] * 3 + [np.full_like(coverage, 255)])
    made[..., 1:3] *= kind != "red"
    made[..., :3] = made[..., :3] * {"gray": 0.5, "0 and 1": 1 / 255}.get(kind, 1)
    made[..., 3] -= kind == "254 everywhere"
    made[0, 0, 3] *= kind != "one hole"
    opaque = (made[..., 3] == 255).all()
    Image.fromarray(made.astype(np.uint8)[..., : 3 if opaque else 4]).save(tmp_path / "mask.png")
    found = read_foreground(photograph, tmp_path / "mask.png")
    np.testing.assert_allclose(found.rgba[..., 3], coverage, atol=1e-6)
    assert found.note is None


@pytest.mark.parametrize("kind", ["inverted", "all white"])
def test_a_mask_that_keeps_the_border_of_the_picture_is_said(photograph, tmp_path, kind):
    alpha = 1 - disc(60, 80, (22, 30), 15) * (kind == "inverted")
    found = read_foreground(photograph, saved(tmp_path / "mask.png", alpha))
    assert "keeps all along the picture's border" in found.note and "inverted" in found.note


def test_a_mask_of_another_shape_and_one_of_nothing_are_refused(photograph, tmp_path):
    turned = saved(tmp_path / "turned.png", np.ones((80, 60)))
    with pytest.raises(InputError, match=r"turned\.png is 60 x 80 pixels, the image 80 x 60"):
        read_foreground(photograph, turned)
    black = saved(tmp_path / "black.png", np.zeros((60, 80)))
    with pytest.raises(InputError, match=r"black\.png leaves nothing.* paint the object white"):
        read_foreground(photograph, black)


def test_a_green_disc_is_no_haze_for_its_color():
    """Only alpha is looked at where it cuts something out."""
    rgba = cut(NOTHING)
    rgba[..., :3] = GREEN
    np.testing.assert_array_equal(extract_foreground(rgba).rgba, rgba)
