"""Time of `import infer_align` in a fresh interpreter.

Prints the median over several interpreters, beside that of NumPy alone.
Run by `make bench`.
"""

import statistics
import subprocess
import sys

REPEATS = 9
TIMED = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"


def median_seconds(statement: str) -> float:
    """Median time of a statement over fresh interpreters; the first, cold, run is dropped."""
    times = [
        float(subprocess.check_output([sys.executable, "-c", TIMED.format(statement)]))
        for _ in range(REPEATS + 1)
    ]
    return statistics.median(times[1:])


def main() -> None:
    """Print the table."""
    for statement in ("import infer_align", "import infer_align.divergences", "import numpy"):
        print(f"{statement:<32} {1e3 * median_seconds(statement):7.1f} ms")


if __name__ == "__main__":
    main()
