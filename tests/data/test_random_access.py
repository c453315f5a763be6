"""Batches through grain: any division, any resumption, any order of steps."""

import importlib.util
import sys
import threading
from pathlib import Path

import grain
import jax
import numpy as np
import pytest

from jaxinf import data

EXAMPLES, BATCH = 10, 4
ROOT = Path(__file__).parents[2]


def read(number):
    """An element that is a pytree."""
    return {"x": np.full((2, 3), number, np.uint8), "label": number % 3}


def dataset(seed):
    return grain.MapDataset.range(EXAMPLES).seed(seed).shuffle().map(read)


def test_rows_are_direct_indexing():
    """Row i of step n is the element n batch + i, over the epochs' ends."""
    batch = data.from_grain(dataset, batch=BATCH)
    for seed in (0, 3):
        direct = dataset(seed)
        for step in (0, 2, 7):
            found = batch(seed, step, np.arange(BATCH))
            wanted = [direct[step * BATCH + i] for i in range(BATCH)]
            np.testing.assert_array_equal(found["x"], np.stack([w["x"] for w in wanted]))
            np.testing.assert_array_equal(found["label"], [w["label"] for w in wanted])
    assert found["x"].dtype == np.uint8
    assert isinstance(found["label"], np.ndarray)


def test_an_epoch_visits_each_example_once_and_the_next_in_another_order():
    batch = data.from_grain(dataset, batch=EXAMPLES)
    first, second = (batch(0, step, np.arange(EXAMPLES))["x"][:, 0, 0] for step in (0, 1))
    assert sorted(first) == sorted(second) == list(range(EXAMPLES))
    assert list(first) != list(second)
    assert list(first) != list(batch(1, 0, np.arange(EXAMPLES))["x"][:, 0, 0])


def test_parts_make_the_whole_and_a_resumed_run_sees_the_same():
    """Two halves of the index on two hosts; a new function at step 5, not asked for 0 to 4."""
    host, other = (data.from_grain(dataset, batch=BATCH) for _ in range(2))
    whole = [host(7, step, np.arange(BATCH)) for step in range(6)]
    halves = [other(7, 5, part) for part in (np.arange(2), np.arange(2, BATCH))]
    joined = jax.tree.map(lambda a, b: np.concatenate([a, b]), *halves)
    jax.tree.map(np.testing.assert_array_equal, joined, whole[5])
    jax.tree.map(np.testing.assert_array_equal, host(7, 0, np.array([3, 0])), pick(whole[0]))


def pick(batch):
    return jax.tree.map(lambda a: a[[3, 0]], batch)


def test_elements_are_read_at_the_same_time():
    """All four readers are within their element at once, else the barrier breaks."""
    barrier = threading.Barrier(BATCH, timeout=20)

    def wait(number):
        barrier.wait()
        return number

    def waiting(seed):
        return grain.MapDataset.range(EXAMPLES).map(wait)

    batch = data.from_grain(waiting, batch=BATCH, threads=BATCH)
    np.testing.assert_array_equal(batch(0, 0, np.arange(BATCH)), np.arange(BATCH))


@pytest.mark.parametrize(
    ("make", "call", "error", "message"),
    [
        (dataset, (-1, 0, np.arange(2)), ValueError, "must not be negative"),
        (dataset, (0, 0, np.arange(5)), ValueError, r"positions in \[0, 4\)"),
        (dataset, (0, 0, np.arange(0)), ValueError, "at least one position"),
        (lambda seed: [1, 2], (0, 0, np.arange(2)), TypeError, "got list. Leave out"),
        (
            lambda seed: dataset(seed).to_iter_dataset(),
            (0, 0, np.arange(2)),
            TypeError,
            "Leave out to_iter_dataset and batch",
        ),
        (
            lambda seed: grain.MapDataset.range(4).filter(lambda i: i != 2),
            (0, 0, np.arange(4)),
            ValueError,
            "element 2 was filtered out.*Filter the source",
        ),
    ],
)
def test_bad_input(make, call, error, message):
    batch = data.from_grain(make, batch=BATCH)
    with pytest.raises(error, match=message):
        batch(*call)


def test_the_experiment_reads_its_files(tmp_path):
    """Files are the digits; those that are there are kept; a folder without any is named."""
    folder = tmp_path / "a" / "digits"
    example = load(ROOT / "experiments" / "files_on_disk.py")
    paths, train = example.files(str(folder)), data.digits().train
    assert len(paths) == len(train.x)
    for number in (0, 7, len(paths) - 1):
        x, label = example.read(paths[number])
        np.testing.assert_array_equal(x, train.x[number])
        assert label == train.label[number]
    paths[0].unlink()
    assert len(example.files(str(folder))) == len(train.x) - 1
    experiment = example.build(example.Config(folder=str(folder), batch=4, steps=1))
    x, label = experiment.batch(0, 400, np.arange(4))
    assert x.shape == (4, 8, 8, 1)
    assert label.dtype == np.int32
    with pytest.raises(FileNotFoundError, match="one that does not exist"):
        example.files(str(tmp_path))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def test_bad_sizes_and_no_grain(monkeypatch):
    with pytest.raises(ValueError, match="at least 1, got 0 and 16"):
        data.from_grain(dataset, batch=0)
    with pytest.raises(ValueError, match="at least 1, got 4 and 0"):
        data.from_grain(dataset, batch=4, threads=0)
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r'pip install "jaxinf\[data\]"'):
        data.from_grain(dataset, batch=4)
