"""Check that the tests notice deliberate mistakes: `make mutants` [ARGS="--only NAME"].

Each `[[mutant]]` of tests/mutations/*.toml replaces one piece of text in a temporary copy of the
tree and names the tests that must then fail. A mutant whose tests still pass survives, and so
do its real counterparts: the run fails. The named tests are first run on the untouched tree,
because a test that always fails kills everything. `--changed [REVISION]` runs the mutants whose
file or tests differ from a revision (HEAD if none is named), untracked files included.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LISTS = ROOT / "tests" / "mutations"
TIMEOUT = 600  # seconds; a mutant that hangs its test is noticed too


@dataclass(frozen=True)
class Mutant:
    """One deliberate mistake and the pytest node ids that must notice it."""

    name: str
    file: str
    old: str
    new: str
    test: list[str]

    def text(self) -> str:
        """The file's text with the mistake in it; raises if the mutation is stale."""
        text = (ROOT / self.file).read_text(encoding="utf-8")
        count = text.count(self.old)
        if count != 1:
            raise ValueError(
                f"{self.name}: mutation is stale: its old text occurs {count} times in "
                f"{self.file}, not once; update tests/mutations/"
            )
        return text.replace(self.old, self.new)


def load() -> list[Mutant]:
    """Read the lists, with a test written alone taken as a list of one."""
    entries = [
        entry
        for path in sorted(LISTS.glob("*.toml"))
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    ]
    mutants = [
        Mutant(**{**e, "test": [e["test"]] if isinstance(e["test"], str) else e["test"]})
        for e in entries
    ]
    names = [mutant.name for mutant in mutants]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"tests/mutations/ has two mutants named {', '.join(twice)}")
    return mutants


def changed_since(revision: str) -> set[str]:
    """Files that differ from a revision, untracked ones included."""
    commands = (
        ["git", "diff", "--name-only", "-z", revision, "--"],
        ["git", "ls-files", "-z", "--others", "--exclude-standard"],
    )
    names = set()
    for command in commands:
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        names.update(name for name in done.stdout.split("\0") if name)
    return names


def touches(mutant: Mutant, files: set[str]) -> bool:
    """Whether the mutant's file, or a file of its tests, is among these."""
    return mutant.file in files or any(test.split("::")[0] in files for test in mutant.test)


def sources() -> list[str]:
    """The files of the tree that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def run_tests(tree: Path, tests: list[str]) -> tuple[int, str]:
    """Run pytest in a tree; its exit status (124 when it ran too long) and its output."""
    # The copy must be what `import infer_align` finds, not the editable installation.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", ""]
    try:
        done = subprocess.run(
            [*command, *tests],
            cwd=tree,
            env=env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return 124, f"no end within {TIMEOUT} s"
    return done.returncode, done.stdout + done.stderr


def copy_tree(files: list[str], folder: Path) -> None:
    """Copy the sources into a folder."""
    for name in files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)


def try_mutant(mutant: Mutant, files: list[str]) -> tuple[str, float, str]:
    """Apply one mutant to a fresh copy and run its tests: outcome, seconds, last lines."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name)
        copy_tree(files, folder)
        (folder / mutant.file).write_text(mutant.text(), encoding="utf-8")
        status, output = run_tests(folder, mutant.test)
    # 1: tests failed. 2: the module no longer imports. Others (no such test) prove nothing.
    outcome = {0: "SURVIVED", 1: "killed", 2: "killed", 124: "killed"}.get(status, "ERROR")
    return outcome, time.monotonic() - start, "\n".join(output.splitlines()[-15:])


def main() -> int:
    """Run all mutants, two at a time, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="NAME", help="one mutant")
    parser.add_argument("--list", action="store_true", help="print the names and check staleness")
    parser.add_argument(
        "--changed",
        nargs="?",
        const="HEAD",
        metavar="REVISION",
        help="those whose file or tests differ from a revision (HEAD if none is named)",
    )
    options = parser.parse_args()
    mutants = [m for m in load() if options.only in (None, m.name)]
    if options.changed is not None:
        differing = changed_since(options.changed)
        mutants = [m for m in mutants if touches(m, differing)]
        if not mutants:
            print(f"no mutant's file or tests differ from {options.changed}")
            return 0
    if not mutants:
        parser.error(f"no mutant is named {options.only!r}; --list prints the names")
    for mutant in mutants:
        mutant.text()
    if options.list:
        print(*(m.name for m in mutants), sep="\n")
        return 0

    files = sources()
    tests = sorted({test for mutant in mutants for test in mutant.test})
    print(f"{len(mutants)} mutants; first the {len(tests)} named tests on the untouched tree")
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        copy_tree(files, Path(name))
        status, output = run_tests(Path(name), tests)
    if status != 0:
        print(output)
        print("the named tests must pass before a mutant is tried", file=sys.stderr)
        return 1

    width = max(len(mutant.name) for mutant in mutants)
    print(f"\n{'mutant':<{width}} {'outcome':<9} {'seconds':>7}")
    lost = []
    with ThreadPoolExecutor(max_workers=2) as pool:
        results = pool.map(lambda mutant: try_mutant(mutant, files), mutants)
        for mutant, (outcome, seconds, tail) in zip(mutants, results, strict=True):
            print(f"{mutant.name:<{width}} {outcome:<9} {seconds:>7.1f}", flush=True)
            if outcome != "killed":
                lost.append(mutant.name)
                print(tail)
    print(f"\n{len(mutants) - len(lost)} killed, {len(lost)} not")
    if lost:
        print(f"not killed: {', '.join(lost)}", file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
