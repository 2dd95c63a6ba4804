"""Runs that are killed and disks that flip bits: `scripts/torture.py`, whole."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_no_kill_and_no_flipped_bit_costs_a_run(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, root / "scripts" / "torture.py"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills: {'survived': 30}" in done.stdout
