"""No machine's paths, no registry hosts, no big files; modules and functions stay small."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Written in pieces, so that this file does not contain them.
FORBIDDEN = re.compile(
    "|".join(
        [
            r"(?<![\w.])/" + r"(?:work|root|home/\w+|opt/pypi|tmp/plan|tmp/env)" + r"(?:/|\b)",
            "pypi" + r"\.org",
            "files\\.python" + "hosted",
            "registry\\.npm" + "js",
            "download\\.py" + "torch",
        ]
    )
)
MAX_BYTES = 1_000_000
MAX_CODE_LINES, MAX_FUNCTION_LINES = 400, 60  # docstrings, comments and blank lines not counted


def tree() -> list[Path]:
    """Every file that git tracks or would track."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_big_files() -> None:
    big = [str(path.relative_to(ROOT)) for path in tree() if path.stat().st_size > MAX_BYTES]
    assert not big, f"over {MAX_BYTES} bytes: {big}; weights and outputs are not committed"


def test_no_machine_paths_nor_registry_hosts() -> None:
    found = []
    for path in tree():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in FORBIDDEN.finditer(text)]
    assert not found, found


def code_lines(source: str, node: ast.AST) -> int:
    """Lines of a module or function that hold code: no docstrings, comments or blank lines."""
    first, last = getattr(node, "lineno", 1), getattr(node, "end_lineno", source.count("\n") + 1)
    kept = {
        number
        for number, line in enumerate(source.splitlines(), 1)
        if first <= number <= last and line.strip() and not line.strip().startswith("#")
    }
    for inner in ast.walk(node):
        if (
            isinstance(inner, ast.Expr)
            and isinstance(inner.value, ast.Constant)
            and isinstance(inner.value.value, str)
        ):
            kept -= set(range(inner.lineno, (inner.end_lineno or inner.lineno) + 1))
    return len(kept)


MODULES = sorted((ROOT / "infer_align").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    module = ast.parse(source)
    assert code_lines(source, module) <= MAX_CODE_LINES, "make it a folder with the same surface"
    functions = [n for n in ast.walk(module) if isinstance(n, ast.FunctionDef)]
    long = {n.name: code_lines(source, n) for n in functions}
    assert not {name: lines for name, lines in long.items() if lines > MAX_FUNCTION_LINES}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_signatures_take_no_kwargs(path: Path) -> None:
    module = ast.parse(path.read_text(encoding="utf-8"))
    classes = [n for n in module.body if isinstance(n, ast.ClassDef)]
    reachable = [n for body in (module, *classes) for n in body.body]  # not what is nested
    functions = [n for n in reachable if isinstance(n, ast.FunctionDef) and n.name[0] != "_"]
    assert not [n.name for n in functions if n.args.kwarg is not None]
