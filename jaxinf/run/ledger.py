"""What a run has come to so far: the one mutable record, from which the report is written."""

import dataclasses
import io
import json
import sys
import traceback
import zipfile
from typing import Any

import jax
import numpy as np

from jaxinf.run.folder import Folder


class RunError(RuntimeError):
    """A run that stopped early or came out incomplete, after everything else was written."""


@dataclasses.dataclass
class Ledger:
    """The state, results and failures of a run under way.

    ``results`` are host arrays by evaluation, with a leading axis over seeds when there are
    several; ``history`` is a list of ``(step, metrics)``; ``state`` is the training state after
    ``step`` steps.
    """

    folder: Folder
    seeds: int
    status: str = "running"
    failures: list[str] = dataclasses.field(default_factory=list)
    remarks: list[str] = dataclasses.field(default_factory=list)
    timings: dict[str, float] = dataclasses.field(default_factory=dict)
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    figures: dict[str, str] = dataclasses.field(default_factory=dict)
    history: list[tuple[int, dict[str, np.ndarray]]] = dataclasses.field(default_factory=list)
    notes: str = ""
    state: Any = None
    step: int = 0

    def fail(self, where: str, error: BaseException) -> None:
        """Record an error in one part of the run, and show its traceback."""
        traceback.print_exception(error, file=sys.stderr)
        self.failures.append(f"{where}: {summary(error)}")

    def raise_failures(self) -> None:
        """Raise where a part of the run failed."""
        if self.failures:
            raise RunError("the run is incomplete: " + "; ".join(self.failures))

    def resume(self, step: int) -> None:
        """Take up the metrics that an earlier run of this folder wrote before a step."""
        lines = [json.loads(line) for line in self.folder.lines("metrics.jsonl")]
        kept = [line for line in lines if line["step"] < step]
        self.history = [
            (line["step"], jax.tree.map(np.asarray, line["metrics"], is_leaf=lambda a: a is None))
            for line in kept
        ]
        self.folder.restart("metrics.jsonl", [json.dumps(line) for line in kept])
        if step:
            self.remarks.append(f"Resumed after step {step}.")

    def add_results(self, results: dict[str, Any]) -> None:
        """Take results in and write all there are to ``arrays.npz``."""
        self.results |= {name: to_host(tree) for name, tree in results.items()}
        self.folder.write("arrays.npz", _archive(dict(flatten(self.results))))

    def first_seed(self) -> dict[str, Any]:
        """The results of the first seed, which are what is drawn."""
        if self.seeds == 1:
            return self.results
        return jax.tree.map(lambda array: array[0], self.results)


def summary(error: BaseException) -> str:
    """An error in one line; JAX's own messages have many."""
    return f"{type(error).__name__}: {str(error).partition('\n')[0]}"


def to_host(tree: Any) -> Any:
    """A pytree as NumPy arrays that a file can hold: keys as their data, bfloat16 as float32."""

    def leaf(value: Any) -> np.ndarray:
        if hasattr(value, "dtype") and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        array = np.asarray(value)
        return array.astype(np.float32) if array.dtype.kind == "V" else array

    return jax.tree.map(leaf, tree)


def flatten(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a pytree with their names, ``evaluation.field``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]


def _archive(arrays: dict[str, np.ndarray]) -> bytes:
    """An ``.npz`` archive; ``numpy.savez`` takes no array named ``file``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return buffer.getvalue()
