"""TRL's own rewards, through its trainer's code and through `score`: the same numbers.

TRL lives in an environment of its own, `build/trl`, which sees ours and is made once.
"""

import json
import math
import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

TRL, MATH_VERIFY = "trl==1.16.0", "math-verify==0.9.0"

COSINE = 0.5 + 0.25 * (1 + math.cos(0.75 * math.pi))
BY_HAND: dict[str, list[list[float]]] = {
    "accuracy": [[1.0], [0.0]],  # \boxed{4}, \boxed{5}
    "reasoning accuracy": [[1.0], [0.0]],
    "think format": [[1.0, 0.0], [1.0, 1.0]],
    "overlong": [[-0.5, -1.0], [-0.5, -1.0]],  # (4 - 2 - length) / 2 of lengths 3 and 4
    "repetition": [[0.0, -0.75], [0.0, 0.0]],  # one kind of token among four
    "cosine": [[COSINE], [-COSINE]],
    "trainer": [[3.0, 4.0], [3.0, 4.0]],
    # accuracy (none for the second prompt) + later/2 (from 4 tokens on) + 2 think format
    "several": [[1 + 0 + 2.0, 0.125 + 0], [0 + 0 + 2.0, 0.125 + 2]],
}


@pytest.fixture(scope="module")
def python(root: Path) -> Path:
    """The interpreter of an environment with TRL; skips where it cannot be installed."""
    folder = root / "build" / "trl"
    python = folder / "bin" / "python"
    check = [str(python), "-c", "import trl.rewards, math_verify, datasets"]
    if python.exists() and subprocess.run(check, capture_output=True, check=False).returncode == 0:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    ours = sysconfig.get_paths()["purelib"]
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "ours.pth").write_text(ours + "\n")
    install = [str(python), "-m", "pip", "install", "-q", "-c", str(root / "constraints.txt")]
    done = subprocess.run(
        [*install, TRL, MATH_VERIFY], capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"{TRL} cannot be installed here: {done.stderr[-500:]}")
    return python


@pytest.fixture(scope="module")
def found(python: Path, root: Path) -> dict[str, Any]:
    """Numbers of both, by case."""
    env = {**os.environ, "PYTHONPATH": str(root)}
    script = root / "scripts" / "trl_rewards.py"
    done = subprocess.run(
        [str(python), str(script)],
        capture_output=True,
        text=True,
        timeout=600,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("case", [*BY_HAND, "a model on chats", "a model on texts"])
def test_rewards_of_trl(found: dict[str, Any], case: str) -> None:
    ours, theirs = found[case]["ours"], found[case]["trl"]
    for i, row in enumerate(theirs):  # TRL's are float32
        assert ours[i] == pytest.approx(row, rel=1e-6)
        if case in BY_HAND:
            assert ours[i] == pytest.approx(BY_HAND[case][i], rel=1e-12)
