"""Files that outlive a crash, and folders that say whether they are whole.

What is written here is on the disk before it takes the place of what stood there: files and
folders are synchronised, then renamed. A sealed folder has a manifest with the SHA-256 of every
file in it, so that a damaged one is named and not taken for another policy.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"
_KEY = "sha256"


def digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk, where the system can say so."""
    if path.is_dir():
        if os.name != "posix":
            return
        with suppress(OSError):  # some file systems have no such call for folders
            _sync(path)
    else:
        _sync(path)


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write(path: Path, text: str) -> None:
    """Write a text in one piece: the old one or the new one is there, whatever interrupts."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8", newline="")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write a file under, which then takes the place of ``path``.

    Two processes have two names; where nothing was written, or writing failed, nothing changes.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield fresh
        sync(fresh)
        fresh.replace(path)
        sync(path.parent)
    finally:
        fresh.unlink(missing_ok=True)


def partial(folder: Path) -> Path:
    """Where a folder is written before it takes its place."""
    return folder.with_name(f".{folder.name}.partial")


def previous(folder: Path) -> Path:
    """Where the folder that stood in this place before is kept."""
    return folder.with_name(f"{folder.name}.previous")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises
    ------
    ValueError
        If the file is no JSON, is nested too deep to be read, or is not an object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise ValueError(f"{path} is not JSON ({error})") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deep to be read as JSON") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object but a {type(found).__name__}")
    return found


def seal(folder: Path) -> None:
    """Write the manifest of a folder, and wait until all of it is on the disk."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder).as_posix(): digest(path) for path in files}
    for path in files:
        sync(path)
    write(folder / MANIFEST, json.dumps({_KEY: names}, indent=1) + "\n")
    for path in sorted({path.parent for path in files}, reverse=True):
        sync(path)


def sealed(folder: Path) -> dict[str, str]:
    """The files of a sealed folder and their digests.

    Raises
    ------
    ValueError
        If the manifest is missing or cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    names = read_object(path).get(_KEY)
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{path} does not list the {_KEY} of files")
    for name, value in names.items():
        parts = PurePosixPath(name).parts
        # A manifest from elsewhere must not make us read or delete what is outside its folder.
        if not isinstance(value, str) or not name or name[0] in "/\\" or ".." in parts:
            raise ValueError(f"{path} has an entry {name!r} that is not one of its folder")
    return names


def faults(folder: Path, *, under: str = "") -> list[str]:
    """What is not as it was sealed, in words; empty where the folder (or one in it) is whole."""
    try:
        names = sealed(folder)
    except ValueError as error:
        return [str(error)]
    out = []
    for name, value in names.items():
        path = folder / name
        if not name.startswith(under):
            continue
        if not path.is_file():
            out.append(f"{path} is missing")
        elif digest(path) != value:
            out.append(f"{path} is not as it was written (its SHA-256 is not {MANIFEST}'s)")
    return out


def unseal(folder: Path) -> None:
    """Take the manifest away, before its files are written anew; one of somebody else stays."""
    with suppress(ValueError):
        sealed(folder)
        (folder / MANIFEST).unlink()


def remove(folder: Path) -> None:
    """Delete a sealed folder, if there is one: at once, so that no half of it stays.

    Raises
    ------
    FileExistsError
        If files of somebody else are in it, or may be; then nothing is deleted.
    """
    folder = folder.resolve()
    shutil.rmtree(partial(folder), ignore_errors=True)
    if not folder.is_dir():
        return
    check_own(folder)
    folder.rename(partial(folder))
    shutil.rmtree(partial(folder))


def check_own(folder: Path) -> None:
    """Refuse a folder with files in it that its manifest does not list: somebody else's.

    Raises
    ------
    FileExistsError
        Which file.
    """
    if not folder.is_dir():
        return
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    try:
        known = {*sealed(folder), MANIFEST} if files else set()
    except ValueError as error:
        raise FileExistsError(
            f"{error}, so nobody can tell whose files are in {folder}: move it away first"
        ) from error
    for path in files:
        if path.relative_to(folder).as_posix() not in known:
            raise FileExistsError(
                f"{path} was not written by infer_align, so {folder} is not replaced: move that "
                "file away first"
            )
