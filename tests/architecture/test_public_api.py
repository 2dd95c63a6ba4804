"""The public API is the one on record, names and signatures."""

from pathlib import Path

import pytest

from tests.architecture.test_gates import load_script


def test_the_public_api_is_the_one_on_record(root: Path) -> None:
    pytest.importorskip("griffe")  # not where the core alone is installed
    api = load_script(root / "scripts" / "public_api.py")
    recorded, found = set(api.SNAPSHOT.read_text(encoding="utf-8").splitlines()), set(api.lines())
    gone = "".join(f"\n- {line}" for line in sorted(recorded - found))
    new = "".join(f"\n+ {line}" for line in sorted(found - recorded))
    assert not gone + new, (
        f"the public API is not the one on record:{gone}{new}\nIf that is meant, run python "
        "scripts/public_api.py --write, and say in CHANGELOG.md what changed"
    )
