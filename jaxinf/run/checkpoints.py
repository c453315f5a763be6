"""Checkpoints of a run under way: saved in the background, found again after whatever happened."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from jaxinf.run.distributed import everywhere, say
from jaxinf.run.ledger import Ledger, RunError, flatten, summary
from jaxinf.run.setting import Setting

INTERRUPTED = 75
"""The exit status after SIGTERM: a temporary failure, which a launcher may try again."""


class Terminated(RunError):
    """A run that was asked to end, and has saved its state."""


class Checkpoints:
    """Saves a run's state every few steps, and at SIGTERM; a context manager.

    A save that fails is recorded and does not end the run.
    """

    def __init__(self, ledger: Ledger, setting: Setting, described: dict[str, Any], steps: int):
        self._ledger, self._described = ledger, described
        usual = -(-steps // 10) if steps >= 100 else 0
        self._every = usual if setting.every is None else setting.every
        self._setting = setting
        self._manager = self._open() if self._every or setting.resume else None
        self._damaged: set[int] = set()
        self._asked = threading.Event()
        self._before: Any = None

    def __enter__(self) -> "Checkpoints":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, lambda *_: self._asked.set())
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if self._manager is not None:
            self._guarded(self._manager.wait_until_finished)
            self._guarded(self._manager.close)

    def restore(self, form: Any) -> None:
        """Put the newest checkpoint that can be read into the ledger, where the run is resumed.

        Args:
          form: the state's shapes, dtypes and shardings, of this run's mesh.

        Raises:
          RunError: for a checkpoint of another experiment, or another state.
        """
        if not self._setting.resume or self._manager is None:
            return
        for step in sorted(self._manager.all_steps(), reverse=True):
            found: Any = {}
            try:
                _same(self._read(step, "run"), self._described, step)
                found = self._read(step, "state", form)
            except RunError:
                raise
            except Exception as error:
                self._damaged.add(step)
                say(f"checkpoint {step} cannot be read ({summary(error)}); looks for one before")
            if everywhere(bool(found)):
                say(f"resumes after step {step}")
                self._ledger.state, self._ledger.step = found["state"], step
                self._ledger.resume(step)
                return
        say("there is no checkpoint to resume from; starts at step 0")
        self._ledger.resume(0)

    def after(self, step: int, state: Any, settle: Callable[[], None]) -> None:
        """Save after a step where it is time to.

        Args:
          step: how many steps have been taken.
          state: the state after them.
          settle: waits until the steps are known to be finite; called before each save.

        Raises:
          Terminated: after a save, where the process was asked to end.
        """
        ending = self._ending(step)
        if ending or (self._every and step % self._every == 0):
            settle()
            self._guarded(lambda: self._save(step, state))
        if ending:
            if self._manager is not None:  # what it could not save is recorded
                self._guarded(self._manager.wait_until_finished)
            raise Terminated(f"ended by SIGTERM after step {step}; --resume goes on from there")

    def _open(self) -> Any:
        """Return orbax's manager of the run's checkpoints."""
        return _manager(self._setting, self._ledger.folder.path)

    def _ending(self, step: int) -> bool:
        """Whether this is the step, the same in every process, after which the run ends."""
        if jax.process_count() == 1:
            return self._asked.is_set()
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def _save(self, step: int, state: Any) -> None:
        import orbax.checkpoint as ocp

        self._manager = self._manager or self._open()
        if step in self._damaged:
            self._manager.delete(step)
            self._damaged.remove(step)
        items = ocp.args.Composite(
            run=ocp.args.JsonSave(self._described), state=ocp.args.StandardSave({"state": state})
        )
        self._manager.save(step, args=items, force=True)

    def _read(self, step: int, item: str, form: Any = None) -> Any:
        """Return one item of a checkpoint."""
        import orbax.checkpoint as ocp

        one = ocp.args.JsonRestore() if form is None else ocp.args.StandardRestore({"state": form})
        args = ocp.args.Composite(**{item: one})
        return None if self._manager is None else self._manager.restore(step, args=args)[item]

    def _guarded(self, action: Callable[[], Any]) -> None:
        """Do something to the disk, and record where it fails."""
        try:
            action()
        except Exception as error:
            self._ledger.fail("checkpoint", error)


def describe(name: str, seed: int, seeds: int, state: Any) -> dict[str, Any]:
    """Return what a checkpoint must agree with to be resumed."""
    form = {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in flatten(state)}
    return {"experiment": name, "seed": seed, "seeds": seeds, "state": form}


def _same(theirs: dict[str, Any], ours: dict[str, Any], step: int) -> None:
    """Raise where a checkpoint belongs to another run."""
    for key in ("experiment", "seed", "seeds"):
        if theirs[key] != ours[key]:
            raise RunError(
                f"checkpoint {step} is of {key} {theirs[key]}, this run of {ours[key]}; resume it "
                "with its own settings, or give this run another folder"
            )
    for path in sorted(set(theirs["state"]) | set(ours["state"])):
        old, new = theirs["state"].get(path, "nothing"), ours["state"].get(path, "nothing")
        if old != new:
            raise RunError(
                f"checkpoint {step} has {old} at {path}, this experiment's state {new}; resume "
                "with the sizes that it was started with"
            )


def _manager(setting: Setting, folder: Path) -> Any:
    """Return orbax's manager."""
    import orbax.checkpoint as ocp

    path = setting.path or str(folder / "checkpoints")
    if jax.process_count() > 1 and "://" not in path and not everywhere(Path(folder).is_dir()):
        raise RunError(
            f"not every host sees {folder}; give a folder or bucket that all share, "
            "--checkpoints gs://BUCKET/NAME"
        )
    options = ocp.CheckpointManagerOptions(
        max_to_keep=setting.keep, create=True, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(path, options=options)
