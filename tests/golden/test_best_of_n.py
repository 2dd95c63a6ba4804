"""The golden best-of-n numbers are what the script computes, and the script is independent."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "best_of_n_reference.py"


def test_the_script_imports_nothing_of_ours_and_no_floats_library() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
        )
    }
    assert not imported & {"infer_align", "numpy", "scipy", "jax", "torch"}


def test_two_rows_agree_with_a_fresh_computation() -> None:
    golden = json.loads((Path(__file__).parent / "best_of_n.json").read_text(encoding="utf-8"))
    case = next(c for c in golden["cases"] if c["name"] == "T1")
    command = ["--p", ",".join(case["p"]), f"--r={','.join(case['r'])}", "--m", "10"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *command, "--delta", "0.05,0.5"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [r for r in case["rows"] if r["m"] == 10 and r["delta"] in ("0.05", "0.5")]
    assert json.loads(done.stdout) == rows


@pytest.mark.slow
def test_every_row_agrees_with_a_fresh_computation() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
