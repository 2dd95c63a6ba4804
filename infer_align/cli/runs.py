"""The run folder: what a fit leaves on disk, and who may write there.

========================  =====================================================================
``config.json``           all choices, versions, seed, hashes of the target and prompt files
``metrics.jsonl``         one line a step, flushed; ``"inf"``, ``"-inf"``, ``"nan"`` as texts
``checkpoint/``           the last complete one: policy and state of the fit
``policy/``               the fitted policy, once the run is complete: safetensors for PEFT or
                          Transformers
``assessment*.nc``        ArviZ trees: before, after, and those of ``assess``
``report*.html``          self-contained
========================  =====================================================================
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from infer_align.cli.errors import Stop
from infer_align.cli.escapes import to_json
from infer_align.cli.text import parse_object, read_lines, read_text

CONFIG = "config.json"


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """All choices."""
        return self.path / CONFIG

    @property
    def metrics(self) -> Path:
        """One line a step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The last complete checkpoint."""
        return self.path / "checkpoint"

    @property
    def policy(self) -> Path:
        """The fitted policy of a complete run."""
        return self.path / "policy"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    def assessment(self, which: str = "") -> Path:
        """The ArviZ tree of the policy, or ``before``, or of some prompts."""
        return self.path / f"assessment{'_' + which if which else ''}.nc"

    def check_free(self, *, overwrite: bool) -> None:
        """Refuse a folder with something in it, unless it is a run to be overwritten."""
        if self.path.exists() and not self.path.is_dir():
            raise Stop(f"{self.path} is a file: give --run-dir a folder")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if not overwrite:
            raise Stop(
                f"{self.path} is not empty: give another --run-dir, or --resume to go on with the "
                "run in it, or --overwrite to replace it"
            )
        if not self.config.is_file():
            raise Stop(
                f"{self.path} holds something that is no run (it has no {CONFIG}), and is not "
                "overwritten: give another --run-dir"
            )

    def begin(self, config: Mapping[str, Any]) -> None:
        """Clear an old run's files (and nothing else), and write the config."""
        self.path.mkdir(parents=True, exist_ok=True)
        patterns = ("checkpoint", "checkpoint.*", "policy", "assessment*.nc", "report*.html")
        for pattern in (*patterns, self.metrics.name, CONFIG):
            for path in self.path.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.write_config(config)

    def reopen(self, config: Mapping[str, Any]) -> None:
        """Go on: the policy of a complete run would be stale (its checkpoint is the same)."""
        shutil.rmtree(self.policy, ignore_errors=True)
        self.write_config(config)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the config in one piece."""
        fresh = self.config.with_suffix(".new")
        fresh.write_text(to_json(config, indent=1) + "\n", encoding="utf-8")
        fresh.replace(self.config)

    def read_config(self) -> dict[str, Any]:
        """The config of an earlier run.

        Raises
        ------
        Stop
            If this is no run folder.
        """
        if not self.config.is_file():
            raise Stop(
                f"{self.path} is not a run folder (it has no {CONFIG}): give the --run-dir of an "
                "earlier infer-align fit or demo"
            )
        return parse_object(read_text(self.config), str(self.config))

    def read_metrics(self) -> list[dict[str, float]]:
        """The metrics, as numbers; an interrupted last line does not count."""
        if not self.metrics.is_file():
            return []
        rows = []
        for line in read_lines(self.metrics):
            try:
                rows.append({k: float(v) for k, v in json.loads(line).items()})
            except json.JSONDecodeError:
                break
        return rows

    def open_metrics(self, *, keep: int) -> IO[str]:
        """The metrics file, cut to its first ``keep`` steps, for appending."""
        rows = self.read_metrics()[:keep]
        fresh = self.metrics.with_suffix(".new")
        fresh.write_text("".join(as_line(row) for row in rows), encoding="utf-8")
        fresh.replace(self.metrics)
        return self.metrics.open("a", encoding="utf-8")


def as_line(row: Mapping[str, float]) -> str:
    """One line of JSON, strictly: numbers that are not finite become texts."""
    return to_json({**row, "step": int(row["step"])}) + "\n"


def default_folder(stem: str) -> Path:
    """A folder under ``runs/`` that nobody has used."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H%M%S")
    return Path("runs") / f"{stamp}_{stem}"


def digest(path: Path | None) -> str | None:
    """SHA-256 of a file."""
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
