"""The wheel, built by way of the sdist, works where the repository is not."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    assert len(list(out.glob("*.tar.gz"))) == 1
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder that holds the installed wheel, an empty folder, and an environment to run in."""
    target, cwd = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    pip = (sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check")
    run(*pip, "--no-deps", "--no-index", "--target", target, wheel, cwd=cwd)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return target, cwd, env | {"PYTHONPATH": str(target), "MPLBACKEND": "agg"}


def test_wheel_holds_the_packages_and_nothing_else(wheel):
    def sources(top: Path) -> set[str]:
        return {path.relative_to(top.parent).as_posix() for path in top.rglob("*.py")}

    names = zipfile.ZipFile(wheel).namelist()
    expected = sources(ROOT / "jaxinf") | sources(ROOT / "kernels" / "jaxinf_kernels")
    assert {name for name in names if name.endswith(".py")} == expected
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"jaxinf", "jaxinf_kernels"}
    assert "jaxinf/py.typed" in names


@pytest.mark.parametrize("package", ["jaxinf", "jaxinf_kernels"])
def test_wheel_imports(installed, package):
    target, cwd, env = installed
    code = f"import {package}; print({package}.__path__[0])"
    where = Path(run(sys.executable, "-c", code, cwd=cwd, env=env).strip())
    assert where == target / package


def test_wheel_has_the_command(installed):
    target, cwd, env = installed
    assert "run" in run(target / "bin" / "jaxinf", "--help", cwd=cwd, env=env)


def test_wheel_runs_the_example_of_the_readme(installed):
    _, cwd, env = installed
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    examples = [block for block in blocks if "from jaxinf import" in block]
    assert examples, "README.md shows no example that imports jaxinf"
    run(sys.executable, "-c", "\n".join(examples), cwd=cwd, env=env)
