"""Where and how a run goes, beside what it computes."""

import dataclasses
from pathlib import Path

from jaxinf.run.errors import UsageError
from jaxinf.run.mesh import Rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """On which mesh a run lies, where it writes, how it is saved and resumed.

    Attributes:
      mesh: sizes of the mesh's axes, ``"data=4,fsdp=2"``; see ``jaxinf.run.mesh.sizes``.
      rules: where leaves of the state lie, before the experiment's own rules.
      folder: the run's folder, in place of a new one named by the time. It must be empty, unless
        the run is resumed.
      every: steps from one checkpoint to the next, 0 for none; None for ten in all, and none in
        runs of fewer than 100 steps. SIGTERM saves one in any case.
      keep: how many checkpoints stay, the newest.
      path: where they lie, a local folder or a bucket's (``gs://...``); None for ``checkpoints/``
        in the run's folder. Several hosts must all see it.
      resume: whether to go on from the newest checkpoint that can be read, of ``folder`` or of the
        newest run of the name; where there is none, the run starts.
    """

    mesh: str = ""
    rules: tuple[Rule, ...] = ()
    folder: Path | str | None = None
    every: int | None = None
    keep: int = 3
    path: str | None = None
    resume: bool = False


def check(setting: Setting) -> None:
    """Raise for counts that are wrong."""
    if setting.every is not None and setting.every < 0:
        raise UsageError(
            f"checkpoint_every must not be negative, got {setting.every}; 0 saves none"
        )
    if setting.keep < 1:
        raise UsageError(f"keep must be at least 1, got {setting.keep}")
