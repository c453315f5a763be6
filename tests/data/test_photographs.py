import numpy as np
import pytest

from jaxinf import data


def test_photographs_are_parted_by_a_line():
    from sklearn.datasets import load_sample_images

    train, test = data.photographs()
    assert train.dtype == np.uint8
    np.testing.assert_array_equal(
        np.concatenate([train, test], axis=2), np.stack(load_sample_images().images)
    )


def test_tiles_are_a_grid_without_overlap():
    images = np.arange(2 * 7 * 9 * 3, dtype=np.uint8).reshape(2, 7, 9, 3)
    tiles = data.tiles(images, size=3)
    assert tiles.shape == (2 * 2 * 3, 3, 3, 3)
    np.testing.assert_array_equal(tiles[7], images[1, :3, 3:6])
    assert data.tiles(data.photographs().test).shape == (520, 16, 16, 3)


def test_patches_are_cuts_at_any_offset_mirrored_or_not():
    # Each pixel tells its own place: (photograph, row, column).
    places = np.stack(np.meshgrid(range(2), range(7), range(9), indexing="ij"), -1).astype(np.uint8)
    patches = data.patches(places, 0, 0, np.arange(4000), size=4)
    mirrored = patches[:, 0, 0, 2] > patches[:, 0, 1, 2]
    patches = np.where(mirrored[:, None, None, None], patches[:, :, ::-1], patches)
    image, top, left = patches[:, 0, 0].astype(np.int64).T
    for i in range(100):
        expected = places[image[i], top[i] : top[i] + 4, left[i] : left[i] + 4]
        np.testing.assert_array_equal(patches[i], expected)
    cells = np.ravel_multi_index((image, top, left, mirrored.astype(int)), (2, 4, 6, 2))
    counts = np.bincount(cells, minlength=96)
    rate = 4000 / 96
    # Chi-square with 95 degrees of freedom has mean 95 and variance 190.
    assert abs(np.sum((counts - rate) ** 2 / rate) - 95) < 4 * np.sqrt(190)


def test_hosts_share_the_global_batch():
    train = data.photographs().train
    whole = data.patches(train, 1, 5, np.arange(12))
    assert whole.shape == (12, 16, 16, 3)
    for i in range(3):
        part = data.patches(train, 1, 5, np.arange(12)[i::3])
        np.testing.assert_array_equal(part, whole[i::3])
    assert not np.array_equal(whole, data.patches(train, 1, 6, np.arange(12)))
    assert not np.array_equal(whole, data.patches(train, 2, 5, np.arange(12)))


def test_bad_arguments_name_the_mend():
    images = np.zeros((1, 7, 9, 3), np.uint8)
    with pytest.raises(ValueError, match="between 1 and 7"):
        data.tiles(images, size=8)
    with pytest.raises(ValueError, match="from 0"):
        data.patches(images, 0, 0, np.array([-1]), size=4)
