"""Distances to another class, against their definition for each pixel."""

import tracemalloc

import numpy as np
import pytest

from app.images.boundaries import is_near_another


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 7, 100])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (11, 8)])
def test_a_pixel_is_near_another_if_its_square_holds_another_index(shape, radius):
    random = np.random.default_rng(3)
    indices = (random.random(shape) < 0.08).astype(np.uint8)
    expected = np.zeros(shape, dtype=bool)
    for row, column in np.ndindex(shape):
        rows = slice(max(0, row - radius), row + radius + 1)
        square = indices[rows, max(0, column - radius) : column + radius + 1]
        expected[row, column] = (square != indices[row, column]).any()
    assert np.array_equal(is_near_another(indices, radius), expected)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64])
def test_all_dtypes_of_indices_have_the_same_boundaries(dtype):
    labels = np.array([[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]], dtype=dtype)
    expected = [[False, False, True, True, False, False]] * 2
    assert is_near_another(labels, 1).tolist() == expected
    assert labels.tolist() == [[0, 0, 0, 1, 1, 1]] * 2


def test_large_and_negative_indices_differ_from_small_ones():
    labels = np.array([[300, 300, 44, 44, -1, -1, 65535, 255]])
    expected = [False, True, True, True, True, False, True, True]
    assert is_near_another(labels, 1).tolist() == [expected]


def test_a_picture_of_few_rows_is_not_padded_to_many():
    indices = np.zeros((2, 100_000), dtype=np.uint8)
    tracemalloc.start()
    try:
        assert not is_near_another(indices, 100).any()
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 16 * indices.size
