"""Run the checks of `make test` one after the other and print how long each took.

Every stage runs even if an earlier one failed, so that one run shows everything that is wrong;
the exit status is then 1, as it is where the whole took longer than `LIMIT`. The table has each
stage's share of the time and the load of the machine while it ran: a stage that is late on busy
cores is another thing than one that has grown. `--only NAME` runs one stage, `--slow` the slow
tier. Only the standard library is used, and every command comes from the environment of this
interpreter.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CLOSING = re.compile(r"^=+ .*\b(passed|failed|error|no tests ran|skipped|deselected)\b.* =+$")

SHARES = {
    "environment": 4, "lint": 1, "types": 2, "tests": 15, "tutorials": 6, "papers": 6, "docs": 4,
}  # fmt: skip
LIMIT = 60  # minutes of all of them together

# One thread per process: with two processes on two cores, oversubscribed threads cost 20x.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    "NO_MKDOCS_2_WARNING": "1",  # an announcement of mkdocs-material, not about our pages
}


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> bool:
    """Run a command with its output passed through; whether it succeeded."""
    print("$", *(str(part) for part in command), flush=True)
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **ENVIRONMENT, **env}
    )
    return done.returncode == 0


def lint() -> bool:
    """Style, formatting, and the import contracts."""
    results = [
        run(BIN / "ruff", "check", "."),
        run(BIN / "ruff", "format", "--check", "."),
        run(BIN / "lint-imports"),
    ]
    return all(results)


def types() -> bool:
    """Static types of the package and of the catalogue."""
    return run(BIN / "pyright", "--pythonpath", sys.executable)


def pytest(*arguments: str) -> bool:
    """Tests and doctests; remembers pytest's closing line for the end of the report."""
    command = [sys.executable, "-m", "pytest", *arguments]
    if (os.cpu_count() or 1) > 1:
        command += ["-n", "2", "--dist", "worksteal"]
    print("$", *command, flush=True)
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if CLOSING.match(line.strip()):
                closing_lines.append(line.strip())
    return process.returncode == 0


closing_lines: list[str] = []
loads: dict[str, str] = {}  # mean of the last 5 minutes at the end of each stage

# Not --quiet: it silences the warnings before --strict has counted them, and nothing then fails.
BUILD_SITE = (sys.executable, "-m", "mkdocs", "build", "--strict")


def tests() -> bool:
    """Everything that is not marked slow."""
    return pytest("--durations=10")


def slow_tests() -> bool:
    """What is marked slow."""
    return pytest("-m", "slow", "--durations=20")


def nothing(pattern: str) -> bool:
    """A stage that finds nothing to run has not passed."""
    print(f"no file matches {pattern}")
    return False


def tutorials() -> bool:
    """Each tutorial as a script, at the sizes that INFER_ALIGN_FAST=1 selects."""
    scripts = sorted((ROOT / "tutorials").glob("[0-9]*.py"))
    if not scripts:
        return nothing("tutorials/[0-9]*.py")
    with tempfile.TemporaryDirectory() as folder:  # whatever a tutorial writes stays there
        results = [
            run(sys.executable, script, cwd=Path(folder), INFER_ALIGN_FAST="1")
            for script in scripts
        ]
    return all(results)


def papers() -> bool:
    """The smoke run of each reproduced paper."""
    folders = sorted(path.parent.name for path in (ROOT / "paper_repro").glob("*/run.py"))
    if not folders:
        return nothing("paper_repro/*/run.py")
    results = [
        run(sys.executable, "-m", f"paper_repro.{name}.run", "--smoke", INFER_ALIGN_FAST="1")
        for name in folders
    ]
    return all(results)


def docs() -> bool:
    """Build the site, then check that it documents every name and fetches nothing."""
    built = run(*BUILD_SITE)
    return built and run(sys.executable, ROOT / "scripts" / "check_site.py")


def wheel() -> bool:
    """A wheel installed without extras and with [torch] does what the README says."""
    return run(sys.executable, ROOT / "scripts" / "check_wheel.py")


def oldest() -> bool:
    """The tests at the lower bounds of the core, and of the core with [jax]."""
    return run(sys.executable, ROOT / "scripts" / "oldest.py")


def bench() -> bool:
    """Every benchmark script, at its default size."""
    scripts = sorted((ROOT / "benchmarks").glob("*.py"))
    results = [run(sys.executable, script) for script in scripts]
    return all(results) if results else nothing("benchmarks/*.py")


FAST: list[tuple[str, Callable[[], bool]]] = [
    ("lint", lint),
    ("types", types),
    ("tests", tests),
    ("tutorials", tutorials),
    ("papers", papers),
    ("docs", docs),
]
SLOW: list[tuple[str, Callable[[], bool]]] = [
    ("slow tests", slow_tests),
    ("wheel", wheel),
    ("oldest", oldest),
]
STAGES = dict([*FAST, *SLOW, ("bench", bench)])


class Row(NamedTuple):
    """One line of the table."""

    stage: str
    seconds: float
    passed: bool


def report(rows: list[Row]) -> list[str]:
    """Print the table; what makes the run fail."""
    print(f"\n{'stage':<12} {'minutes':>8} {'share':>6} {'load':>6}")
    for row in rows:
        share = SHARES.get(row.stage, "")
        outcome = "ok" if row.passed else "FAILED"
        load = loads.get(row.stage, "")
        print(f"{row.stage:<12} {row.seconds / 60:>8.2f} {share:>6} {load:>6}  {outcome}")
    total = sum(row.seconds for row in rows) / 60
    print(f"{'total':<12} {total:>8.2f}")
    for line in closing_lines:
        print(line)
    failed = [row.stage for row in rows if not row.passed]
    if total > LIMIT and all(row.stage in SHARES for row in rows):
        failed.append(f"{total:.0f} minutes in all, over {LIMIT}")
    return failed


def main() -> int:
    """Run the stages asked for and print the table of stage, minutes and outcome."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slow", action="store_true", help="the slow tier instead")
    parser.add_argument("--only", choices=sorted(STAGES), help="one stage")
    parser.add_argument("--started", type=float, help="when `make` started, in epoch seconds")
    options = parser.parse_args()

    rows: list[Row] = []
    if options.started:
        rows.append(Row("environment", time.time() - options.started, passed=True))
    chosen = [(options.only, STAGES[options.only])] if options.only else FAST
    for name, stage in SLOW if options.slow else chosen:
        print(f"\n==> {name}", flush=True)
        start = time.monotonic()
        passed = stage()
        rows.append(Row(name, time.monotonic() - start, passed))
        loads[name] = f"{os.getloadavg()[1]:.1f}"

    failed = report(rows)
    if failed:
        print(f"FAILED: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
