import numpy as np

from jaxinf import data

LABELS = [6, 6, 6, 2, 5, 6, 6, 2]


def test_split_has_the_stated_shapes_and_levels():
    train, test = data.digits()
    assert train.x.shape == (1437, 8, 8, 1)
    assert test.x.shape == (360, 8, 8, 1)
    assert train.x.dtype == test.x.dtype == np.uint8
    assert train.label.dtype == test.label.dtype == np.int32
    assert set(np.unique(train.x)) == set(range(17))


def test_split_is_a_partition_of_the_images():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rows = np.concatenate([images, labels[:, None]], axis=1).astype(np.int64)
    train, test = data.digits()
    both = [np.concatenate([d.x.reshape(len(d.x), 64), d.label[:, None]], 1) for d in (train, test)]
    parted = np.concatenate(both).astype(np.int64)
    np.testing.assert_array_equal(
        parted[np.lexsort(parted.T)],
        rows[np.lexsort(rows.T)],
    )


def test_split_is_stratified_and_in_mixed_order():
    train, test = data.digits()
    counts = np.bincount(test.label), np.bincount(train.label)
    share = counts[0] * 1797 / ((counts[0] + counts[1]) * 360)
    # Largest remainders put each class within one image of its exact share.
    assert np.all(np.abs(share - 1) * (counts[0] + counts[1]) * 360 / 1797 < 1)
    for label in (train.label, test.label):
        # Equal neighbours happen at a rate of about 1/10 in mixed order.
        rate = np.mean(label[1:] == label[:-1])
        assert abs(rate - 0.1) < 4 * np.sqrt(0.09 / len(label))


def test_split_is_fixed():
    first, second = data.digits(), data.digits()
    np.testing.assert_array_equal(first.test.x, second.test.x)
    # The first test labels, so that a change of the split is seen.
    assert first.test.label[:8].tolist() == LABELS
