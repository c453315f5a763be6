"""A run's folder, on a disk that may fail.

What the disk refuses is kept in memory and written at the end, elsewhere if it must be: a full
disk never ends a run.
"""

import contextlib
import fcntl
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from jaxinf.run.errors import UsageError


class Folder:
    """The files of one run.

    ``path`` is where they lie, ``pending`` holds the contents of those that could not be written.
    Of several processes only one writes.
    """

    def __init__(self, path: Path, writes: bool = True):
        self.path, self.writes = path, writes
        self._lock = _locked(path) if writes else None
        self.pending: dict[str, bytes] = {}
        self._appended: dict[str, bytes] = {}

    def append(self, name: str, line: str) -> None:
        """Add a line to a text file."""
        if not self.writes:
            return
        data = f"{line}\n".encode()
        self._appended[name] = self._appended.get(name, b"") + data
        if name in self.pending:
            self.pending[name] = self._appended[name]
            return
        try:
            with (self.path / name).open("ab") as file:
                file.write(data)
        except OSError as error:
            self._keep(name, self._appended[name], error)

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, over an older one only when the new one is complete."""
        if not self.writes:
            return
        part = self.path / f"{name}.part"
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            part.replace(self.path / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            self._keep(name, data, error)
        else:
            self.pending.pop(name, None)

    def lines(self, name: str) -> list[str]:
        """The whole lines of a text file, none where there is no such file."""
        try:
            text = (self.path / name).read_text()
        except OSError:
            return []
        return text[: text.rfind("\n") + 1].splitlines()

    def restart(self, name: str, lines: list[str]) -> None:
        """Begin a text file anew with lines."""
        data = "".join(f"{line}\n" for line in lines).encode()
        self._appended[name] = data
        self.write(name, data)

    def release(self) -> None:
        """Let other runs have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def settle(self) -> bool:
        """Write what is pending, in a fresh temporary folder if the disk still refuses.

        Returns:
          Whether the folder had to move there; files that were written are copied along, the
          training state is not.
        """
        if not self.pending:
            return False
        try:
            _write_all(self.path, self.pending)
            moved = False
        except OSError:
            fallback = Path(tempfile.mkdtemp(prefix=f"jaxinf-{self.path.name}-"))
            files = [file for file in self.path.rglob("*") if self._copied(file)]
            contents = {str(file.relative_to(self.path)): file.read_bytes() for file in files}
            _write_all(fallback, contents | self.pending)
            print(f"jaxinf: {self.path} cannot be written; see {fallback}", file=sys.stderr)
            self.path, moved = fallback, True
        self.pending = {}
        return moved

    def _copied(self, file: Path) -> bool:
        """Whether a file moves along: a regular one, outside the training state and the profile."""
        large = file.relative_to(self.path).parts[0].startswith(("state", "profile", "checkpoints"))
        return file.is_file() and file.suffix != ".part" and not large

    def _keep(self, name: str, data: bytes, error: OSError) -> None:
        """Keep a file in memory, and say so at the first one."""
        if not self.pending:
            print(
                f"jaxinf: cannot write {self.path / name} ({error.strerror or error}); kept in "
                "memory and tried again at the end",
                file=sys.stderr,
            )
        self.pending[name] = data


def _write_all(path: Path, contents: dict[str, bytes]) -> None:
    """Write files where they belong."""
    for name, data in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


def _locked(path: Path) -> IO[bytes] | None:
    """Return the folder's lock, held until it is closed or the process ends."""
    try:
        file = (path / ".lock").open("wb")
    except OSError:  # a disk that refuses must not end the run
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UsageError(
            f"another run is writing to {path}; wait for it, or give this one another folder"
        ) from None
    except OSError:  # a file system without locks
        file.close()
        return None
    return file


def taken(path: Path, resume: bool) -> Folder:
    """A folder that the user named.

    Raises:
      ValueError: where it is not empty and the run is not resumed, and where another run has it.
    """
    if not resume and path.is_dir() and any(path.iterdir()):
        raise UsageError(
            f"{path} is not empty: it may hold another run; resume that one with --resume, or give "
            "another folder"
        )
    path.mkdir(parents=True, exist_ok=True)
    return Folder(path.resolve())


def latest(directory: Path, name: str) -> Path | None:
    """The newest run's folder of a name."""
    return max((one for one in (directory / name).glob("*-*") if one.is_dir()), default=None)


def fresh(directory: Path, name: str) -> Folder:
    """A new folder ``directory/name/yyyymmdd-hhmmss[-n]``, in UTC."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    path, attempt = directory / name / stamp, 0
    while True:
        try:
            path.mkdir(parents=True)
        except FileExistsError:  # also when another process was quicker
            if not path.is_dir():
                raise
            attempt += 1
            path = directory / name / f"{stamp}-{attempt}"
        else:
            return Folder(path.resolve())
