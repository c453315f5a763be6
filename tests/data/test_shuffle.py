import numpy as np
import pytest

from jaxinf import data


def stream(seed, steps, batch, examples):
    return np.concatenate(
        [data.rows(seed, s, np.arange(batch), batch=batch, examples=examples) for s in range(steps)]
    )


@pytest.mark.parametrize(("batch", "examples"), [(4, 12), (5, 12), (30, 12), (1, 3)])
def test_each_epoch_visits_each_example_once(batch, examples):
    epochs = 5
    seen = stream(3, -(-epochs * examples // batch), batch, examples)[: epochs * examples]
    seen = seen.reshape(epochs, examples)
    np.testing.assert_array_equal(np.sort(seen, axis=1), np.tile(np.arange(examples), (epochs, 1)))
    assert seen.dtype == np.int64


def test_epochs_and_seeds_have_their_own_order():
    seen = stream(3, 6, 50, 100).reshape(3, 100)
    other = stream(4, 2, 50, 100)
    assert not np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[1], seen[2])
    assert not np.array_equal(seen[0], other)


def test_hosts_share_the_global_batch():
    whole = data.rows(0, 7, np.arange(10), batch=10, examples=17)
    parts = [data.rows(0, 7, np.arange(10)[i::3], batch=10, examples=17) for i in range(3)]
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(part, whole[i::3])


def test_positions_pass_32_bits():
    step = 2**33
    row = data.rows(0, step, np.arange(4, dtype=np.int32), batch=4, examples=8)
    order = np.random.default_rng([0, 2**32]).permutation(8)
    np.testing.assert_array_equal(row, order[:4])


def test_bad_arguments_name_the_mend():
    with pytest.raises(ValueError, match="within the global batch"):
        data.rows(0, 0, np.array([4]), batch=4, examples=8)
    with pytest.raises(ValueError, match="negative"):
        data.rows(-1, 0, np.array([0]), batch=4, examples=8)
    with pytest.raises(ValueError, match="at least 1"):
        data.rows(0, 0, np.array([0]), batch=4, examples=0)
