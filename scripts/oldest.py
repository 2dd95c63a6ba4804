"""Run the tests at the lower bounds of pyproject.toml, each set in an environment of its own.

Two sets: the core alone, and the core with [jax]. Every requirement that has a lower bound is
installed at exactly that version (the highest, where the core and the extra state two), as wheels
only; what they bring in turn is what pip finds. The tests are those that such an environment can
collect. Of [torch] the bounds are stated and not run. A requirement without a bound is an error.

    python scripts/oldest.py [core] [jax] [-- ARGUMENTS OF PYTEST]
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETS: dict[str, tuple[str, ...]] = {"core": (), "jax": ("jax",)}
TOOLS = ("pytest", "pytest-xdist", "beartype", "hypothesis", "mpmath")
# What is deprecated between an old library and a new one below it is no fault of ours.
QUIET = [f"-Wignore::{kind}" for kind in ("DeprecationWarning", "FutureWarning")]
REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(\[[^\]]*\])?\s*(.*)$")


def lower_bounds(requirements: Iterable[str]) -> list[str]:
    """``name[extra]==version`` of each requirement; the highest of several bounds of one name.

    Raises
    ------
    ValueError
        For a requirement without a lower bound.
    """
    found: dict[str, tuple[str, str]] = {}
    for requirement in requirements:
        match = REQUIREMENT.match(requirement)
        bound = re.search(r">=\s*([0-9][0-9A-Za-z.]*)", requirement)
        if match is None or bound is None:
            raise ValueError(
                f"{requirement!r} in pyproject.toml has no lower bound; state one that was run"
            )
        name, extra, version = match[1], match[2] or "", bound[1]
        if name not in found or _order(version) > _order(found[name][1]):
            found[name] = (extra, version)
    return [f"{name}{extra}=={version}" for name, (extra, version) in sorted(found.items())]


def _order(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def requirements_of(extras: Iterable[str]) -> list[str]:
    """The core's requirements and those of extras, as pyproject.toml states them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    parts = [project["optional-dependencies"][extra] for extra in extras]
    return [one for part in [project["dependencies"], *parts] for one in part]


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> bool:
    """Run a command with its output passed through; whether it succeeded."""
    print("$", *(str(part) for part in command), flush=True)
    done = subprocess.run([str(part) for part in command], cwd=cwd, env={**os.environ, **env})
    return done.returncode == 0


def try_set(name: str, pytest_arguments: list[str]) -> bool:
    """One environment: install, start the command line, run the tests."""
    pins = lower_bounds(requirements_of(SETS[name]))
    print(f"\n==> {name} at {', '.join(pins)}", flush=True)
    with tempfile.TemporaryDirectory(prefix=f"oldest-{name}-") as folder:
        python = Path(folder) / "venv" / "bin" / "python"
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
        pip = (python, "-m", "pip", "--disable-pip-version-check", "-qq", "install")
        return (
            run(sys.executable, "-m", "venv", Path(folder) / "venv")
            and run(*pip, "--only-binary", ":all:", *pins, *TOOLS)
            and run(python, "-m", "infer_align.cli", "--help", **environment)
            and run(python, "-m", "infer_align.cli", "models", **environment)
            and run(
                python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *QUIET, "-n", "2",
                "--ignore=tests/architecture",  # of the tree, whatever is installed
                # a process of its own, in which every warning is an error
                "--deselect", "tests/unit/test_jax_fit.py::test_without_x64",
                "--dist", "worksteal", *pytest_arguments, **environment,
            )
        )  # fmt: skip


def main() -> int:
    """Try the sets asked for; 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", help=f"of {', '.join(SETS)}; default: all")
    argv = sys.argv[1:]
    cut = argv.index("--") if "--" in argv else len(argv)
    names = parser.parse_args(argv[:cut]).sets or list(SETS)
    if unknown := [name for name in names if name not in SETS]:
        parser.error(f"no set is called {unknown[0]!r}; there are {', '.join(SETS)}")
    outcomes = {name: try_set(name, argv[cut + 1 :]) for name in names}
    print("\n".join(f"{name}: {'ok' if good else 'FAILED'}" for name, good in outcomes.items()))
    return 0 if all(outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
