"""Run an experiment on TPU hosts: the commands of a job, from one file of settings.

Command: ``python experiments/launch/launch.py ACTION [--settings FILE] [--dry-run]``. For TPU VMs
the actions are ``create``, ``sync`` (this repository's last commit, installed on every host),
``run`` (on all hosts, in the background; it goes on after a failure), ``log``, ``fetch`` (the
reports) and ``delete``; for GKE ``manifest`` prints a JobSet, for ``kubectl apply -f -``.
``--dry-run`` prints what would be run, and runs nothing.
"""

import json
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
RETRY = "sh experiments/launch/retry.sh"


@dataclass(frozen=True)
class Launch:
    """Run an experiment on TPU hosts."""

    action: Literal["create", "sync", "run", "log", "fetch", "delete", "manifest"]
    """What to do."""
    settings: Path = HERE / "settings.toml"
    """The job's settings."""
    dry_run: bool = False
    """Print the commands and run nothing."""


def job(settings: dict[str, Any]) -> list[str]:
    """The command that every host runs."""
    return [
        "jaxinf", "run", settings["experiment"], *settings["arguments"],
        "--processes", str(settings["hosts"]), "--folder", f"runs/{settings['name']}",
        "--checkpoints", f"{settings['bucket']}/{settings['name']}", "--resume",
    ]  # fmt: skip


def commands(action: str, settings: dict[str, Any]) -> list[list[str]]:
    """The commands of an action on TPU VMs."""
    vm, name = settings["tpu_vm"], settings["name"]
    place = ["--project", settings["project"], "--zone", vm["zone"]]
    gcloud = ["gcloud", "compute", "tpus", "tpu-vm"]

    def ssh(command: str, worker: str = "all") -> list[str]:
        # one line: the words after a line's end would be lost
        return [*gcloud, "ssh", name, *place, f"--worker={worker}", "--command", command]

    def scp(source: str, target: str, worker: str) -> list[str]:
        return [*gcloud, "scp", "--recurse", source, target, *place, f"--worker={worker}"]

    if action == "create":
        kind = ["--accelerator-type", vm["accelerator"], "--version", vm["runtime"]]
        return [[*gcloud, "create", name, *place, *kind, *(["--spot"] if vm["spot"] else [])]]
    if action == "sync":
        install = (
            "mkdir -p jaxinf && tar -xzf jaxinf.tar.gz -C jaxinf && cd jaxinf && "
            "python3.12 -m venv .venv && .venv/bin/pip install -q -c constraints.txt '.[tpu]'"
        )
        return [
            ["git", "archive", "--format=tar.gz", "--output=jaxinf.tar.gz", "HEAD"],
            scp("jaxinf.tar.gz", f"{name}:", "all"),
            ssh(install),
        ]
    if action == "run":
        # in the background: a call for all workers shows nothing before the last one has ended
        line = shlex.join([".venv/bin/" + job(settings)[0], *job(settings)[1:]])
        retried = f"RETRIES={settings['retries']} nohup {RETRY} {line} > job.log 2>&1 < /dev/null &"
        return [ssh(f"cd jaxinf && {retried}")]
    if action == "log":
        return [ssh("tail -n 50 -F jaxinf/job.log", worker="0")]
    if action == "fetch":
        return [scp(f"{name}:jaxinf/runs/{name}", "runs/", "0")]
    return [[*gcloud, "delete", name, *place, "--quiet"]]


def manifest(settings: dict[str, Any]) -> dict[str, Any]:
    """A JobSet: a job for each slice, a pod for each host; failed ones start again and resume."""
    gke = settings["gke"]
    chips = {"google.com/tpu": str(gke["chips"])}
    container = {
        "name": "jaxinf",
        "image": gke["image"],
        "command": job(settings),
        "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
        "resources": {"limits": chips, "requests": chips},
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 120,  # SIGTERM saves
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": gke["accelerator"],
            "cloud.google.com/gke-tpu-topology": gke["topology"],
        },
        "containers": [container],
    }
    each = settings["hosts"] // gke["slices"]
    slices = {
        "name": "slice",
        "replicas": gke["slices"],
        "template": {
            "spec": {
                "parallelism": each,
                "completions": each,
                "backoffLimit": 0,
                "template": {"spec": pod},
            }
        },
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": settings["name"],
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {"maxRestarts": settings["retries"]},
            "replicatedJobs": [slices],
        },
    }


def load(path: Path) -> dict[str, Any]:
    """Read settings; say which are missing or unknown."""
    found = tomllib.loads(path.read_text())
    wanted = tomllib.loads((HERE / "settings.toml").read_text())
    for part, known in (("", wanted), ("tpu_vm", wanted["tpu_vm"]), ("gke", wanted["gke"])):
        given = found.get(part, {}) if part else found
        wrong = set(given) ^ set(known)
        if wrong:
            raise SystemExit(
                f"launch: {path}: {', '.join(sorted(wrong))} in [{part}] is missing or unknown; "
                f"it takes {', '.join(known)}"
            )
    if found["hosts"] % found["gke"]["slices"]:
        raise SystemExit(f"launch: {found['gke']['slices']} slices do not divide the hosts")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run an action's commands one after the other, up to the first that fails."""
    import tyro

    launch = tyro.cli(Launch, args=arguments, config=(tyro.conf.PositionalRequiredArgs,))
    settings = load(launch.settings)
    if launch.action == "manifest":
        print(json.dumps(manifest(settings), indent=2))
        return 0
    for command in commands(launch.action, settings):
        print(shlex.join(command), file=sys.stdout if launch.dry_run else sys.stderr, flush=True)
        if not launch.dry_run and (status := subprocess.run(command, check=False).returncode):
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
