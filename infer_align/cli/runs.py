"""The run folder: what a fit leaves on disk, and who may write there.

=======================  ======================================================================
``run.json``             what makes the folder a run: its files, and the SHA-256 of those that a
                         later command reads
``infer_align.lock``     while a run writes here: its process and host
``config.json``          all choices, versions, seed, hashes of the target and prompt files
``metrics.jsonl``        one line a step, flushed; ``"inf"``, ``"-inf"``, ``"nan"`` as texts
``checkpoint/``          the last complete one: policy and state of the fit; the one before it is
                         ``checkpoint.previous/``
``policy/``              the fitted policy, once the run is complete: safetensors for PEFT or
                         Transformers
``assessment*.nc``       ArviZ trees: before, after, and those of ``assess``
``report*.html``         self-contained
=======================  ======================================================================
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from infer_align import _files
from infer_align.cli import locks
from infer_align.cli.console import notice
from infer_align.cli.errors import Stop
from infer_align.cli.escapes import to_json
from infer_align.cli.locks import Lock
from infer_align.cli.settings import Settings
from infer_align.cli.text import parse_object, read_text

CONFIG, MANIFEST = "config.json", "run.json"
_MARK = "infer_align_run"
_OURS = (CONFIG, "metrics*.jsonl", "assessment*.nc", "report*.html")
"""Names that a run gives its files; only those are deleted, and only if `run.json` lists them."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and what it says of itself."""

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

    @property
    def is_run(self) -> bool:
        """Whether infer-align made it: other folders have a config.json, too."""
        return (self.path / MANIFEST).is_file()

    def files(self) -> dict[str, Any]:
        """What the run has written, and what is known of each: a SHA-256, or that of some lines.

        Raises
        ------
        Stop
            If that record is damaged.
        """
        path = self.path / MANIFEST
        try:
            found = _files.read_object(path)
            files = found["files"] if _MARK in found else None
            if isinstance(files, dict) and all(_is_ours(name) for name in files):
                return files
            raise ValueError(f"{path} does not list the files of a run")
        except (KeyError, ValueError) as error:
            raise Stop(
                f"{error}: it is damaged. Restore it; or, to go on without its checks, put "
                f'{{"{_MARK}": 1, "files": {{}}}} into it'
            ) from error

    def record(self, name: str, known: Any) -> None:
        """Add a file to those that the run has written."""
        with _alone(self.path):
            files = self.files() | {name: known}
            self._write_manifest(files)

    def wrote(self, path: Path) -> None:
        """Add a file as it is now."""
        self.record(path.name, _files.digest(path))

    def is_whole(self, path: Path) -> bool:
        """Whether a file is there as the run wrote it."""
        return path.is_file() and self.files().get(path.name) == _files.digest(path)

    def _write_manifest(self, files: Mapping[str, Any]) -> None:
        text = json.dumps({_MARK: 1, "files": files}, indent=1)
        _files.write(self.path / MANIFEST, text + "\n")

    def check_free(self, *, overwrite: bool) -> None:
        """Refuse a folder with something in it, unless it is a run to be overwritten."""
        if self.path.exists() and not self.path.is_dir():
            raise Stop(f"{self.path} is a file: give --run-dir a folder")
        if not self.path.is_dir() or all(p.name == locks.NAME for p in self.path.iterdir()):
            return
        if not self.is_run:
            raise Stop(
                f"{self.path} holds something that is no run (it has no {MANIFEST}), and is not "
                "overwritten: give another --run-dir"
            )
        if not overwrite:
            raise Stop(
                f"{self.path} is not empty: give another --run-dir, or --resume to go on with the "
                "run in it, or --overwrite to replace it"
            )

    def clear(self) -> None:
        """Delete the files of an old run, and nothing else; a run without files is left.

        Raises
        ------
        Stop
            If somebody else's files are in the folders of the run; then nothing is deleted.
        """
        if self.is_run:
            checkpoint = self.checkpoint.resolve()
            folders = [self.policy, _files.previous(checkpoint), checkpoint]
            try:
                for folder in folders:
                    _files.check_own(folder.resolve())
            except FileExistsError as error:
                raise Stop(str(error)) from error
            for folder in folders:
                _files.remove(folder)
            for name in self.files():
                (self.path / name).unlink(missing_ok=True)
        self._write_manifest({})

    def sweep(self) -> None:
        """Delete what killed processes were writing; what live ones write stays."""
        for path in self.path.glob(".*.partial"):
            pid = path.name.split(".")[-2]
            if path.is_file() and pid.isdecimal() and not locks.alive(int(pid)):
                path.unlink(missing_ok=True)

    def drop_policy(self) -> None:
        """Before a run goes on: the policy of a complete one would be stale.

        Its checkpoint is the same.
        """
        try:
            _files.remove(self.policy)
        except FileExistsError as error:
            raise Stop(str(error)) from error

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the config in one piece, with its own hash."""
        body = {name: value for name, value in config.items() if name != "sha256"}
        self.record(CONFIG, None)
        _files.write(self.config, to_json(body | {"sha256": _hash(body)}, indent=1) + "\n")

    def read_config(self, *, trust: bool = False) -> dict[str, Any]:
        """The config of an earlier run.

        Parameters
        ----------
        trust : bool
            Take a config that is not as it was written.

        Raises
        ------
        Stop
            If this is no run folder, or its config cannot be read, or was changed.
        """
        if not self.is_run:
            raise Stop(
                f"{self.path} is not a run folder (it has no {MANIFEST}): give the --run-dir of an "
                "earlier infer-align fit or demo"
            )
        if not self.config.is_file():
            raise Stop(f"{self.path} has no {CONFIG}: start that run again, with --overwrite")
        config = parse_object(read_text(self.config), str(self.config))
        body = {name: value for name, value in config.items() if name != "sha256"}
        if config.get("sha256") != _hash(body):
            changed = f"{self.config} is not as the run wrote it (its SHA-256 differs)"
            if not trust:
                raise Stop(
                    f"{changed}: restore it, or give --trust-target to take it, and the target "
                    "file that it names, as they are now"
                )
            notice(f"{changed}, and is taken as it is (--trust-target)")
        _check_config(self.config, body)
        return body


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    """What the commands read of a config."""
    kinds: dict[str, tuple[type, ...]] = {
        "settings": (dict,), "estimator": (str,), "versions": (dict,), "created": (str,),
        "target_sha256": (str,), "prompts_sha256": (str, type(None)),
    }  # fmt: skip
    for name, kind in kinds.items():
        if name not in config:
            raise Stop(f"{path} has no {name!r}: restore it, or start the run again")
        if not isinstance(config[name], kind):
            raise Stop(
                f"{path}: {name!r} must be a {kind[0].__name__}, got {config[name]!r:.80}: restore "
                "it, or start the run again"
            )
    try:
        Settings.from_config(config["settings"])
    except Stop as error:
        raise Stop(f"{path}: {error}") from error


def check_target(config: Mapping[str, Any], path: Path, *, trust: bool) -> None:
    """Refuse to run another target file than the one that the run was made with.

    Raises
    ------
    Stop
        If it is missing, or has changed and is not trusted.
    """
    if not path.is_file():
        raise Stop(f"the run's target file {path} is not there any more: put it back")
    if _files.digest(path) == config["target_sha256"]:
        return
    changed = f"the target file has changed since the run began ({path})"
    if not trust:
        raise Stop(f"{changed}: restore it, or give --trust-target to run it as it is now")
    notice(f"{changed}; what follows is about the new one")


def check_run_dir(run_dir: Path | None, *, overwrite: bool) -> None:
    """Refuse a --run-dir that a run could not begin in, before anything slow."""
    if run_dir is None:
        return
    folder = RunFolder(run_dir)
    if folder.is_run:
        locks.check_unused(run_dir)
    folder.check_free(overwrite=overwrite)


@contextmanager
def begun(run_dir: Path | None, stem: str, *, overwrite: bool) -> Iterator[tuple[RunFolder, Lock]]:
    """A run folder without files, owned until the block ends.

    Parameters
    ----------
    run_dir : pathlib.Path, optional
        Default: a new folder under ``runs/``, which nobody else gets.
    stem : str
        For its name.
    overwrite : bool
        Delete the files of the run there.
    """
    folder = RunFolder(_new_folder(stem) if run_dir is None else run_dir)
    folder.check_free(overwrite=overwrite)
    folder.path.mkdir(parents=True, exist_ok=True)
    with locks.held(folder.path) as lock:
        folder.check_free(overwrite=overwrite)  # another may have begun here meanwhile
        folder.sweep()
        folder.clear()
        yield folder, lock


def _new_folder(stem: str) -> Path:
    """A new folder under ``runs/``: two runs of one second get two."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H%M%S")
    for number in itertools.count(1):
        path = Path("runs") / f"{stamp}_{stem}{'' if number == 1 else f'_{number}'}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable")


def digest(path: Path | None) -> str | None:
    """SHA-256 of a file."""
    return None if path is None else _files.digest(path)


def _hash(body: Mapping[str, Any]) -> str:
    plain = json.loads(to_json(body))  # as it is read again
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _is_ours(name: str) -> bool:
    path = Path(name)
    return path.name == name and any(path.match(pattern) for pattern in _OURS)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else changes the manifest meanwhile, where the system has locks of folders."""
    if locks.fcntl is None:
        yield
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            locks.fcntl.flock(number, locks.fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)
