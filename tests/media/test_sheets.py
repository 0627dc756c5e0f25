import numpy as np
import pytest

from o3d_jax.media.sheets import GAP, grid


def plain(height, width, color):
    return np.broadcast_to(np.float32(color), (height, width, 3)).copy()


def test_tiles_lie_in_rows_with_gaps_and_missing_ones_are_white():
    red, green, blue = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    sheet = grid([[plain(9, 9, red), plain(9, 9, green)], [plain(9, 9, blue)]], least_tile=9)
    pitch = 9 + GAP
    assert sheet.shape == (2 * pitch + GAP, 2 * pitch + GAP, 3)
    expected = np.ones_like(sheet)
    expected[GAP : GAP + 9, GAP : GAP + 9] = red
    expected[GAP : GAP + 9, GAP + pitch : GAP + pitch + 9] = green
    expected[GAP + pitch : GAP + pitch + 9, GAP : GAP + 9] = blue
    np.testing.assert_array_equal(sheet, expected)


def test_small_and_oblong_images_are_enlarged_in_proportion():
    sheet = grid([[plain(16, 8, (0, 0, 0))]], least_tile=64)
    ink = 1 - sheet[..., 0]
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (64, 32)


def test_large_images_are_shrunk_to_the_largest_tile():
    sheet = grid([[plain(90, 60, (0, 0, 0)), plain(5, 5, (0, 0, 0))]], most_tile=30, least_tile=8)
    assert sheet.shape == (30 + 2 * GAP, 2 * 30 + 3 * GAP, 3)


def test_labels_print_beside_their_row_and_above_their_column_only():
    tiles = [[plain(30, 30, (0.5, 0.5, 0.5))] * 2 for _ in range(3)]
    bare = grid(tiles, row_labels=("", "", ""), column_labels=("", ""), least_tile=30)
    left, top = bare.shape[1] - 2 * (30 + GAP), bare.shape[0] - 3 * (30 + GAP)
    named = grid(tiles, row_labels=("", "ab", ""), column_labels=("", "cd"), least_tile=30)
    wider = named.shape[1] - bare.shape[1]
    assert wider > 5  # Room for two letters.
    margin, head = named[:, : left + wider], named[:top, left + wider :]
    inked_rows = np.flatnonzero((margin < 0.5).any(axis=(1, 2)))
    inked_columns = np.flatnonzero((head < 0.5).any(axis=(0, 2)))
    second = top + 30 + GAP
    assert second < inked_rows.min() and inked_rows.max() < second + 30
    assert 30 + GAP < inked_columns.min() and inked_columns.max() < 2 * 30 + GAP
    np.testing.assert_array_equal(named[top:, left + wider :], bare[top:, left:])


def test_an_empty_sheet_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        grid([[], []])
