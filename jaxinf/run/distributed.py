"""One job of several processes: joining, who writes, and what each prints."""

import argparse
import contextlib
import dataclasses
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from jaxinf.run.errors import UsageError

NEVER_JOINED = 69
"""The exit status where a process never joined: a service is unavailable."""


@dataclasses.dataclass(frozen=True)
class Job:
    """How this process finds the others of its job."""

    processes: int = 0
    """How many processes the job has; on a TPU pod one for each host. 0: what is found."""
    process: int = -1
    """This process's number from 0; -1 where the environment tells it (TPU pods, Slurm, MPI)."""
    coordinator: str = ""
    """HOST:PORT of process 0; by default what JAX finds, whose port its versions differ in."""
    join_timeout: int = 300
    """Seconds to wait for the other processes."""
    lost_timeout: int = 100
    """Seconds after which a process that is not heard of ends the job: JAX aborts all others
    (SIGABRT), and says which it missed."""


def parse(arguments: list[str]) -> Job:
    """Read the job's options from among others, before anything of JAX is imported."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for field in dataclasses.fields(Job):
        names = {f"--{field.name}", f"--{field.name.replace('_', '-')}"}
        parser.add_argument(*sorted(names), type=type(field.default), dest=field.name)
    found = vars(parser.parse_known_args(arguments)[0])
    return Job(**{name: value for name, value in found.items() if value is not None})


def check(job: Job) -> None:
    """Raise ValueError for options that contradict each other."""
    if job.processes < 0 or job.join_timeout < 1:
        raise UsageError("--processes must not be negative, and --join-timeout at least 1")
    if job.process >= 0 and not job.process < job.processes:
        raise UsageError(
            f"--process {job.process} of --processes {job.processes}: numbers go from 0, and the "
            "same --processes stands on every host"
        )
    if job.process >= 0 and not job.coordinator:
        raise UsageError("--process needs --coordinator HOST:PORT, the address of process 0")
    if job.coordinator and not job.coordinator.rpartition(":")[2].isdecimal():
        raise UsageError(f"--coordinator must be HOST:PORT, got {job.coordinator!r}")


def clustered(environment: Any = os.environ) -> bool:
    """Whether this machine is one of several hosts, by its environment or its TPU chips."""
    if environment.get("JAX_PLATFORMS") == "cpu":
        return False
    counts = (environment.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    return (
        any(count not in ("", "0", "1") for count in counts)
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        or "MEGASCALE_COORDINATOR_ADDRESS" in environment
        or any(Path("/dev").glob("accel*"))
    )


def join(job: Job) -> None:
    """Join the other processes, before anything asks for a device.

    Prints who waits for whom, first of all. Where not all have joined in time, says why that is
    likely so and ends the process with status 69, as JAX itself would abort without a reason.

    Args:
      job: the options. Without any, a process that is alone by its environment joins nothing.

    Raises:
      ValueError: for options that contradict each other, and where there are not as many processes
        as were asked for.
    """
    check(job)
    if job.processes == 1 or not (job.processes or job.coordinator or clustered()):
        return
    number = "?" if job.process < 0 else job.process
    where = job.coordinator or "the coordinator that the environment names"
    say(
        f"process {number} of {job.processes or '?'} on {socket.gethostname()} joins the others at "
        f"{where}, for at most {job.join_timeout} s"
    )
    watch = threading.Timer(job.join_timeout, _give_up, (job, where))
    watch.daemon = True
    watch.start()
    import jax

    given = job.process >= 0
    jax.distributed.initialize(
        job.coordinator or None,
        job.processes if given else None,
        job.process if given else None,
        initialization_timeout=job.join_timeout + 60,
        heartbeat_timeout_seconds=job.lost_timeout,
    )
    watch.cancel()
    count, index = jax.process_count(), jax.process_index()
    if job.processes and count != job.processes:
        raise UsageError(
            f"--processes {job.processes}, but {count} joined: start the same command on every "
            "host (gcloud: --worker=all), with the same options"
        )
    if count > 1:
        sys.stdout, sys.stderr = (Numbered(stream, index) for stream in (sys.stdout, sys.stderr))
    say(
        f"process {index} of {count} on {socket.gethostname()} has joined: "
        f"{jax.local_device_count()} of {jax.device_count()} devices are here; a process that is "
        f"not heard of for {job.lost_timeout} s ends all, and --resume goes on from the newest "
        "checkpoint"
    )


def _give_up(job: Job, where: str) -> None:
    """Say why the others are likely missing, and end."""
    say(
        f"not all processes joined within {job.join_timeout} s. Was the command started on every "
        f"host (gcloud: --worker=all), with the same --processes? Is {where} process 0, and does "
        "no firewall close its port (--coordinator HOST:PORT)? Is an older job still running there?"
    )
    os._exit(NEVER_JOINED)


def say(text: str) -> None:
    """Tell the user something, on stderr."""
    print(f"jaxinf: {text}", file=sys.stderr, flush=True)


class Numbered:
    """A stream that writes whole lines at once, each after the process's number."""

    def __init__(self, stream: TextIO, index: int):
        self._stream, self._mark, self._rest = stream, f"[{index}] ", ""

    def write(self, text: str) -> int:
        """Write the lines that are complete; a carriage return ends one too."""
        lines = (self._rest + text.replace("\r", "\n")).split("\n")
        self._rest = lines.pop()
        for line in filter(str.strip, lines):
            self._stream.write(f"{self._mark}{line}\n")
        self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """Nothing waits but the line under way."""

    def isatty(self) -> bool:
        """Bars of several processes would overwrite each other."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def first() -> bool:
    """Whether this process is the one that writes."""
    import jax

    return jax.process_index() == 0


def agreed(text: str) -> str:
    """Return process 0's text in every process."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return text
    data = np.zeros(1024, np.uint8)
    raw = text.encode()[:1024]
    data[: len(raw)] = np.frombuffer(raw, np.uint8)
    out = np.asarray(multihost_utils.broadcast_one_to_all(data))
    return bytes(out.astype(np.uint8)).rstrip(b"\0").decode()


def everywhere(yes: bool) -> bool:
    """Whether something holds in every process."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return yes
    return bool(np.all(multihost_utils.process_allgather(np.array(yes))))


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Leave the job at the end, so that no process waits for one that is gone."""
    try:
        yield
    finally:
        import jax

        if jax.distributed.is_initialized():
            with contextlib.suppress(Exception):
                jax.distributed.shutdown()
