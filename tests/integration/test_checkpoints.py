"""A checkpoint on disk: whole, or named as damaged; and nobody else's files are touched."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from infer_align import _files, divergences, estimators, tilt
from infer_align.torch import CausalLM, FitState, fit, load_checkpoint, save_checkpoint
from tests.lm_zoo import tiny_lm


def goal(y: torch.Tensor) -> torch.Tensor:
    return (y == 1).double().sum(-1)


@pytest.fixture(scope="module")
def fitted() -> tuple[CausalLM, list[FitState]]:
    """A policy, and the states of its three steps."""
    lm = tiny_lm()
    policy = lm.trainable(lora=2)
    estimator = estimators.f_dpg(divergences.jensen_shannon)
    steps = fit(policy, tilt(lm, goal, beta=1.0), estimator, n=32, steps=3)
    return policy, [step.state for step in steps]


def flip(path: Path, at: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= bit
    path.write_bytes(data)


def test_a_flipped_bit_in_any_file_is_named(
    fitted: tuple[CausalLM, list[FitState]], tmp_path: Path
) -> None:
    policy, states = fitted
    folder = tmp_path / "run"
    save_checkpoint(folder, policy, states[0])
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder).as_posix() for path in files}
    assert {"manifest.json", "state.json", "state.safetensors"} < names
    assert "policy/adapter_model.safetensors" in names
    for path in files:
        for part in (0.02, 0.5, 0.98):
            at = int(part * path.stat().st_size)
            flip(path, at)
            with pytest.raises(ValueError, match=rf"damaged: .*{path.name}"):
                load_checkpoint(folder)
            flip(path, at)
    assert load_checkpoint(folder)["index"] == 1
    for path in files:  # a file that is gone, or cut short
        data = path.read_bytes()
        for rest in (b"", data[:-2]):
            path.write_bytes(rest)
            with pytest.raises(ValueError, match=path.name):
                load_checkpoint(folder)
        path.unlink()
        with pytest.raises(ValueError, match=f"{path.name} is missing"):
            load_checkpoint(folder)
        path.write_bytes(data)


@pytest.mark.parametrize("lora", [2, None])
def test_a_damaged_file_of_a_policy_is_named_in_python(lora: int | None, tmp_path: Path) -> None:
    """Only the command line looked: a flipped bit was another policy."""
    lm = tiny_lm("gpt2", dtype=torch.float32)
    folder = tmp_path / "policy"
    lm.trainable(lora=lora).save(folder)
    weights = folder / ("model.safetensors" if lora is None else "adapter_model.safetensors")
    flip(weights, -5)
    assert CausalLM.load(folder, prior=lm).is_trainable  # nobody can tell
    flip(weights, -5)
    _files.seal(folder)
    assert CausalLM.load(folder, prior=lm).is_trainable
    loads = [lambda: CausalLM.load(folder, prior=lm)]
    if lora is None:
        loads += [
            lambda: CausalLM.load(folder),
            lambda: CausalLM.from_pretrained(folder, max_new_tokens=2),
        ]
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for load in loads:
            flip(path, -5)
            with pytest.raises(ValueError, match=rf"policy is damaged: .*{path.name}"):
                load()
            path.write_bytes(whole)
    lm.trainable(lora=lora).save(folder)  # its manifest is of the files before
    assert not (folder / "manifest.json").exists()
    assert CausalLM.load(folder, prior=lm).is_trainable


def test_a_damaged_policy_of_a_checkpoint_is_named_in_python(
    fitted: tuple[CausalLM, list[FitState]], tmp_path: Path
) -> None:
    policy, states = fitted
    save_checkpoint(tmp_path / "run", policy, states[0])
    folder = tmp_path / "run" / "policy"
    flip(tmp_path / "run" / "state.safetensors", -5)  # not the policy's
    assert CausalLM.load(folder, prior=policy.prior).is_trainable
    flip(folder / "adapter_model.safetensors", -5)
    with pytest.raises(ValueError, match=r"policy is damaged: .*adapter_model\.safetensors"):
        CausalLM.load(folder, prior=policy.prior)
    (tmp_path / "run" / "manifest.json").unlink()
    assert CausalLM.load(folder, prior=policy.prior).is_trainable


def test_a_manifest_of_somebody_else_stays(tmp_path: Path) -> None:
    lm = tiny_lm("gpt2", dtype=torch.float32)
    (tmp_path / "manifest.json").write_text('{"name": "app"}')
    lm.save(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == '{"name": "app"}'
    with pytest.raises(ValueError, match=r"does not list the sha256 .*remove its manifest\.json"):
        CausalLM.load(tmp_path)


def test_the_one_before_a_damaged_one_is_kept_and_offered(
    fitted: tuple[CausalLM, list[FitState]], tmp_path: Path
) -> None:
    policy, states = fitted
    folder = tmp_path / "run"
    for state in states:
        save_checkpoint(folder, policy, state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.previous"]
    flip(folder / "policy" / "adapter_model.safetensors", -5)
    with pytest.raises(ValueError, match=r"run\.previous of step 2, is whole: .*\(mv ") as caught:
        load_checkpoint(folder)
    assert str(folder / "policy" / "adapter_model.safetensors") in str(caught.value)
    folder.rename(tmp_path / "run.damaged")
    assert load_checkpoint(folder)["index"] == 2
    save_checkpoint(folder, policy, states[2])  # the only whole one stays until this one stands
    assert load_checkpoint(folder)["index"] == 3
    assert load_checkpoint(tmp_path / "run.previous")["index"] == 2
    flip(folder / "state.json", 9)
    flip(tmp_path / "run.previous" / "state.json", 9)
    with pytest.raises(ValueError, match="No earlier one is whole"):
        load_checkpoint(folder)


def test_only_checkpoints_are_replaced(
    fitted: tuple[CausalLM, list[FitState]], tmp_path: Path
) -> None:
    policy, states = fitted
    mine = tmp_path / "model"
    mine.mkdir()
    save_checkpoint(mine, policy, states[0])  # an empty folder is free
    (tmp_path / "model.new").mkdir()
    (tmp_path / "model.old").mkdir()
    (mine / "policy" / "important.txt").write_text("kept")
    with pytest.raises(FileExistsError, match=r"important\.txt was not written"):
        save_checkpoint(mine, policy, states[1])
    assert load_checkpoint(mine)["index"] == 1
    (mine / "policy" / "important.txt").unlink()
    save_checkpoint(mine, policy, states[1])
    (tmp_path / "model.previous" / "thesis.txt").write_text("kept")
    with pytest.raises(FileExistsError, match=r"thesis\.txt was not written"):
        save_checkpoint(mine, policy, states[2])
    assert load_checkpoint(mine)["index"] == 2
    assert (tmp_path / "model.new").is_dir()
    assert (tmp_path / "model.old").is_dir()
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="move it away first"):
        save_checkpoint(other, policy, states[0])
    assert (other / "config.json").read_text() == "{}"


def test_a_link_to_another_disk_stays_one(
    fitted: tuple[CausalLM, list[FitState]], tmp_path: Path
) -> None:
    policy, states = fitted
    disk = tmp_path / "disk"
    (disk / "store").mkdir(parents=True)
    link = tmp_path / "checkpoint"
    link.symlink_to(disk / "store")
    for state in states:
        save_checkpoint(link, policy, state)
    assert link.is_symlink()
    assert load_checkpoint(link)["index"] == 3
    assert sorted(path.name for path in disk.iterdir()) == ["store", "store.previous"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "disk"]
    shutil.rmtree(disk / "store")  # as between the two moves of a save
    assert load_checkpoint(link)["index"] == 2


def test_no_checkpoint_says_so(tmp_path: Path) -> None:
    for name in ("nothing", "."):
        with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
            load_checkpoint(tmp_path / name)


def test_a_manifest_reaches_no_file_outside_its_folder(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("kept")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("../thesis.txt", str(thesis), "a/../../thesis.txt", ""):
        (folder / "manifest.json").write_text(json.dumps({"sha256": {name: "0"}}))
        assert "not one of its folder" in _files.faults(folder)[0]
        with pytest.raises(FileExistsError, match="not one of its folder"):
            _files.remove(folder)
    for text, message in (
        ("[1]", "not a JSON object but a list"),
        ('{"sha256": []}', "does not list"),
        ("[" * 100_000, "nested too deep"),
        ("\udcff", "not JSON"),
    ):
        (folder / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
        assert message in _files.faults(folder)[0]
    assert thesis.read_text() == "kept"
