"""The import contracts of pyproject.toml hold (docs: CONTRIBUTING.md, "Layers")."""

import subprocess
import sys
from pathlib import Path


def test_import_contracts(root: Path) -> None:
    code = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
