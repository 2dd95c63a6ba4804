"""`CausalLM` is an exact distribution, on every family of tiny model.

Vocabulary 5, length 4: all 341 outcomes are listed, so "probabilities sum to one", "samples
follow log_prob" and "padding changes nothing" are tested as they stand.
"""

import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from scipy import stats

from infer_align.torch import prompts as prompts_
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

ALL = all_outcomes()


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def lm(request: pytest.FixtureRequest) -> CausalLM:
    return tiny_lm(request.param, token_budget=100_000)


def each_prompt(outcomes: torch.Tensor, count: int = len(PROMPTS)) -> torch.Tensor:
    return outcomes[:, None].expand(-1, count, -1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(lm: CausalLM, prompt: list[int], outcome: torch.Tensor) -> float:
    """The definition: one sequence, one forward pass a token, nothing padded or cached."""
    total, ids = 0.0, list(prompt)
    for token in outcome.tolist():
        logits = lm.module(torch.tensor([ids])).logits[0, -1]
        total += float(logits.log_softmax(-1)[token])
        if token in lm.eos_token_ids:
            break
        ids.append(token)
    return total


def test_probabilities_sum_to_one(lm: CausalLM) -> None:
    assert len(ALL) == 341
    total = lm(PROMPTS).log_prob(each_prompt(ALL)).exp().sum(0)
    assert torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_log_prob_is_its_definition(lm: CausalLM) -> None:
    picked = ALL[[0, 3, 17, 60, 200, 340]]
    found = lm(PROMPTS).log_prob(each_prompt(picked))
    for i, outcome in enumerate(picked):
        for j, prompt in enumerate(PROMPTS):
            assert found[i, j] == pytest.approx(reference(lm, prompt, outcome), abs=1e-10)


def test_float32_sums_to_one() -> None:
    lm = tiny_lm("llama", dtype=torch.float32)
    per_token = lm(PROMPTS).log_prob_per_token(each_prompt(ALL))
    assert per_token.dtype == torch.float32
    read = per_token[per_token < 0]
    assert (read.bfloat16().float() != read).float().mean() > 0.9, "normalised in bfloat16"
    # Some processors round a row's matrix products by what else is in the pass.
    assert (per_token.sum(-1).exp().sum(0) - 1).abs().max() < 5e-3


def test_bfloat16_weights_score_in_float32() -> None:
    lm = tiny_lm("llama", dtype=torch.bfloat16)
    per_token = lm(PROMPTS).log_prob_per_token(each_prompt(ALL))
    assert per_token.dtype == torch.float32
    read = per_token[per_token < 0]
    assert (read.bfloat16().float() != read).float().mean() > 0.9, "normalised in bfloat16"
    # Some processors round a row's matrix products by what else is in the pass.
    assert (per_token.sum(-1).exp().sum(0) - 1).abs().max() < 5e-3
    assert 0 <= lm.sample_score_difference(PROMPTS, n=8, generator=generator()) < 0.5


def test_samples_follow_log_prob(lm: CausalLM) -> None:
    n = 20_000
    draws = lm(PROMPTS).sample_with_log_prob((n,), generator=generator(3))[0]
    places = {tuple(y): i for i, y in enumerate(ALL.tolist())}
    probabilities = lm(PROMPTS).log_prob(each_prompt(ALL)).exp()
    for j in range(len(PROMPTS)):
        counts = torch.zeros(len(ALL))
        for y in draws[:, j].tolist():
            counts[places[tuple(y)]] += 1  # a KeyError here is an outcome that is not one
        expected = n * probabilities[:, j]
        common = expected >= 5
        seen = [*counts[common].tolist(), float(counts[~common].sum())]
        wanted = [*expected[common].tolist(), float(expected[~common].sum())]
        # p-value of a fixed seed: 1e-5 is the 4.4 sigma of one test.
        assert stats.chisquare(seen, wanted, sum_check=False).pvalue > 1e-5


def test_sampler_and_scorer_agree(lm: CausalLM) -> None:
    assert lm.sample_score_difference(PROMPTS, n=200, generator=generator()) < 1e-10


def test_padded_equals_unpadded(lm: CausalLM) -> None:
    together = lm(PROMPTS)
    for j, prompt in enumerate(PROMPTS):
        alone = lm([prompt]).log_prob(ALL[:, None])[:, 0]
        assert torch.allclose(together.log_prob(each_prompt(ALL))[:, j], alone, rtol=0, atol=1e-10)


def test_sampling_does_not_depend_on_batching() -> None:
    large, small = tiny_lm("qwen2"), tiny_lm("qwen2", token_budget=30)
    y, log_prob = large(PROMPTS).sample_with_log_prob((40,), generator=generator(5))
    y_small, log_prob_small = small(PROMPTS).sample_with_log_prob((40,), generator=generator(5))
    assert torch.equal(y, y_small)
    assert torch.allclose(log_prob, log_prob_small, rtol=0, atol=1e-10)


def test_entries_after_the_eos_are_ignored(lm: CausalLM) -> None:
    y = torch.tensor([[[1, EOS, 0, 3]], [[1, EOS, EOS, EOS]], [[EOS, 2, 2, 2]]])
    log_prob = lm([[2]]).log_prob(y)[:, 0]
    assert log_prob[0] == pytest.approx(float(log_prob[1]), abs=1e-12)
    per_token = lm([[2]]).log_prob_per_token(y)
    assert torch.equal(per_token[0, 0, 2:], torch.zeros(2, dtype=torch.float64))
    assert torch.allclose(per_token.sum(-1)[:, 0], log_prob)
    assert lm.lengths(y).tolist() == [[2], [2], [1]]


def test_samples_are_filled_after_their_end() -> None:
    lm = tiny_lm("llama", eos_token_ids=(3, EOS))
    y = lm([[1], [2, 2]]).sample_with_log_prob((300,), generator=generator())[0].reshape(-1, LENGTH)
    ends = lm.lengths(y)
    assert set(ends.tolist()) == {1, 2, 3, 4}
    for row, end in zip(y.tolist(), ends.tolist(), strict=True):
        assert not set(row[: end - 1]) & {3, EOS}
        assert row[end:] == [3] * (LENGTH - end)


@pytest.mark.parametrize("eos", [(EOS,), (1, EOS), (0, 2, 3), ()])
def test_several_eos_ids_and_none(eos: tuple[int, ...]) -> None:
    lm = tiny_lm("gpt2", eos_token_ids=eos)
    outcomes = all_outcomes(eos) if eos else torch.cartesian_prod(*[torch.arange(5)] * LENGTH)
    total = lm(PROMPTS).log_prob(each_prompt(outcomes)).exp().sum(0)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-12)
    assert lm.sample_score_difference(PROMPTS, generator=generator()) < 1e-10


def test_pad_token_is_never_consulted() -> None:
    outcomes = each_prompt(ALL)
    base = tiny_lm("gpt2")(PROMPTS).log_prob(outcomes)
    for pad in (0, 2, EOS):
        model = tiny_model("gpt2")
        model.config.pad_token_id = model.generation_config.pad_token_id = pad
        lm = CausalLM(model, None, max_new_tokens=LENGTH)
        assert torch.equal(lm(PROMPTS).log_prob(outcomes), base)


def test_shipped_generation_settings_are_not_applied() -> None:
    model = tiny_model("llama")
    model.generation_config.update(
        temperature=0.1, top_k=1, do_sample=False, repetition_penalty=5.0, min_new_tokens=4
    )
    y = CausalLM(model, None, max_new_tokens=LENGTH)(PROMPTS).sample_with_log_prob(
        (50,), generator=generator()
    )[0]
    plain = tiny_lm("llama")(PROMPTS).sample_with_log_prob((50,), generator=generator())[0]
    assert torch.equal(y, plain)


def test_dropout_is_inert() -> None:
    model = tiny_model("gpt2")
    lm = CausalLM(model, None, max_new_tokens=LENGTH)
    model.train()  # as a Trainer would leave it
    assert lm.sample_score_difference(PROMPTS, generator=generator()) < 1e-10
    y = each_prompt(ALL[:50])
    assert torch.equal(lm(PROMPTS).log_prob(y), lm(PROMPTS).log_prob(y))


@pytest.mark.parametrize("budget", [1, 23])
def test_micro_batches_do_not_change_the_gradient(lm: CausalLM, budget: int) -> None:
    policy = lm.trainable()
    continuations = policy(PROMPTS)
    y = each_prompt(ALL[::9])
    c = torch.randn(y.shape[:2], dtype=torch.float64, generator=generator(1))

    def gradient(size: int) -> torch.Tensor:
        for p in policy.parameters():
            p.grad = None
        seen = []
        for rows in continuations.micro_batches(y, size):
            (c.reshape(-1)[rows] * continuations.log_prob_rows(y, rows)).sum().backward()
            seen += rows.tolist()
        assert sorted(seen) == list(range(c.numel()))
        return torch.cat([p.grad.reshape(-1) for p in policy.parameters() if p.grad is not None])

    whole = gradient(10**6)
    assert (gradient(budget) - whole).norm() < 1e-10 * whole.norm()


def test_the_gradient_is_that_of_the_definition(lm: CausalLM) -> None:
    policy = lm.trainable()
    parameters = [p for n, p in policy.named_parameters()]
    found = torch.autograd.grad(
        policy([[1, 2]]).log_prob(torch.tensor([[[3, 0, EOS, 1]]])).sum(),
        parameters,
        allow_unused=True,
    )
    logits = policy.module(torch.tensor([[1, 2, 3, 0]])).logits[0, 1:].log_softmax(-1)
    definition = logits[0, 3] + logits[1, 0] + logits[2, EOS]
    expected = torch.autograd.grad(definition, parameters, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_micro_batches_respect_the_budget() -> None:
    continuations = tiny_lm()(PROMPTS)
    y = each_prompt(ALL[::5])
    sizes = torch.tensor([len(p) for p in PROMPTS]).expand(len(y), -1).reshape(-1)
    widths = sizes + continuations.lengths(y).reshape(-1) - 1
    batches = list(continuations.micro_batches(y, 40))
    assert all(len(b) * int(widths[b].max()) <= 40 for b in batches)
    assert len(batches) < 0.2 * len(widths)


def test_log_prob_of_rows_is_log_prob(lm: CausalLM) -> None:
    continuations = lm(PROMPTS)
    y = each_prompt(ALL[::20])
    rows = torch.tensor([5, 0, 31, 8])
    whole = continuations.log_prob(y).reshape(-1)[rows]
    assert torch.allclose(continuations.log_prob_rows(y, rows), whole, rtol=0, atol=1e-10)


def test_a_model_without_logits_to_keep() -> None:
    model = tiny_model("llama")
    plain = model.forward

    def forward(input_ids, attention_mask, position_ids, past_key_values=None, use_cache=False):
        return plain(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )

    expected = tiny_lm("llama")(PROMPTS).log_prob(each_prompt(ALL[::20]))
    model.forward = forward
    lm = CausalLM(model, None, max_new_tokens=LENGTH)
    assert torch.allclose(lm(PROMPTS).log_prob(each_prompt(ALL[::20])), expected)
    assert lm.sample_score_difference(PROMPTS, generator=generator()) < 1e-10


def test_unconditional_has_no_context_axis() -> None:
    lm = tiny_lm()
    assert lm(None).batch_shape == ()
    y = lm().sample((6,))
    assert y.shape == (6, LENGTH)
    assert torch.allclose(lm(None).log_prob(y), lm([[0]]).log_prob(y[:, None])[:, 0])
    other = CausalLM(tiny_model("gpt2"), None, max_new_tokens=LENGTH, start_token_id=3)
    log_prob = other(None).log_prob(y)
    assert torch.allclose(log_prob, lm([[3]]).log_prob(y[:, None])[:, 0])
    assert torch.allclose(other([None, [1]]).log_prob(each_prompt(y, 2))[:, 0], log_prob)


def test_pyro_sites_have_one_log_prob_an_outcome() -> None:
    lm = tiny_lm()

    def program(prompts):
        return pyro.sample("y", lm(prompts))

    y = lm(PROMPTS).sample((6,))
    trace = pyro.poutine.trace(pyro.poutine.condition(program, {"y": y})).get_trace(PROMPTS)
    trace.compute_log_prob()
    assert torch.equal(trace.nodes["y"]["log_prob"], lm(PROMPTS).log_prob(y))
    assert trace.nodes["y"]["log_prob"].shape == (6, 3)
    drawn = pyro.poutine.trace(program).get_trace(PROMPTS).nodes["y"]["value"]
    assert drawn.shape == (3, LENGTH)
    observed = pyro.poutine.trace(lambda: pyro.sample("y", lm(PROMPTS), obs=y)).get_trace()
    assert observed.log_prob_sum() == pytest.approx(float(lm(PROMPTS).log_prob(y).sum()))


def test_expands_in_a_pyro_plate() -> None:
    lm = tiny_lm()

    def program():
        with pyro.plate("outcomes", 6, dim=-2), pyro.plate("contexts", 3, dim=-1):
            return pyro.sample("y", lm(PROMPTS))

    site = pyro.poutine.trace(program).get_trace().nodes["y"]
    assert site["value"].shape == (6, 3, LENGTH)
    assert site["fn"].log_prob(site["value"]).shape == (6, 3)


def test_counts_tell_the_cost_of_a_step() -> None:
    lm = tiny_lm("llama")
    policy = lm.trainable()
    y, _ = policy(PROMPTS).sample_with_log_prob((8,), generator=generator())
    with torch.no_grad():
        lm(PROMPTS).log_prob(y)
    for rows in policy(PROMPTS).micro_batches(y, 20):
        policy(PROMPTS).log_prob_rows(y, rows).sum().backward()
    assert (policy.counts["sampled_rows"], lm.counts["sampled_rows"]) == (24, 0)
    assert (lm.counts["scored_rows"], lm.counts["grad_rows"]) == (24, 0)
    assert (policy.counts["scored_rows"], policy.counts["grad_rows"]) == (24, 24)


def test_distinct_prompts_are_read_once() -> None:
    lm = tiny_lm("gpt2")
    widths = []
    lm.module.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    lm([[1, 2, 3], [2, 2, 1]]).sample((9,))
    assert widths[0] == (2, 3)
    assert all(width == 1 for _, width in widths[1:])
    assert len(widths) <= LENGTH


# Text ----------------------------------------------------------------------------------------


def worded(**settings: bool) -> CausalLM:
    return CausalLM(tiny_model("gpt2"), tiny_tokenizer(**settings), max_new_tokens=LENGTH)


def test_bos_is_not_doubled() -> None:
    assert worded().encode_prompts(["a b"]) == [[1, 2]]
    adding = worded(adds_bos=True)
    assert adding.encode_prompts(["a b", "<s> a b"]) == [[0, 1, 2], [0, 1, 2]]


def test_eos_that_a_tokenizer_appends_does_not_end_the_prompt() -> None:
    lm = worded(adds_bos=True, adds_eos=True)
    assert lm.encode_prompts(["a b"]) == [[0, 1, 2]]
    assert lm.encode_prompts(["a </s>"]) == [[0, 1, EOS]]  # the user's own stays


def test_chat_messages_go_through_the_template() -> None:
    chat = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "b"}]
    for adds_bos in (False, True):
        assert worded(adds_bos=adds_bos).encode_prompts([chat, "c"])[0] == [0, 1, 2, 2, 3]
    bare = worded()
    bare.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        bare.encode_prompts([chat])


NO_IDS: dict[str, tuple[Any, str]] = {
    "a number": (3, "prompt 7 is of type int; it must be a text"),
    "a float": ([1, 2.5], r"prompt 7 has 2\.5 in it, which is no token id"),
    "an array of floats": (np.array([1.0, 2.0]), r"has 1\.0 in it"),
    "a tensor of floats": (torch.tensor([1.5]), r"has 1\.5 in it"),
    "a boolean": ([True], "has True in it"),
    "a table": (torch.tensor([[1, 2]]), r"has \[1, 2\] in it"),
    "bytes": (b"ab", "is of type bytes"),
    "a set": ({1, 2}, "is of type set"),
    "a message among ids": ([1, {"role": "user"}], r"has \{'role': 'user'\} in it"),
}


@pytest.mark.parametrize("case", NO_IDS)
def test_token_ids_are_whole_numbers(case: str) -> None:
    given, message = NO_IDS[case]
    assert not prompts_.is_chat(given)
    with pytest.raises(TypeError, match=message):
        prompts_.token_ids(given, "prompt 7")


def test_token_ids_of_every_kind() -> None:
    kinds = ([1, 2], (1, 2), np.array([1, 2]), torch.tensor([1, 2]), [np.int64(1), torch.tensor(2)])
    assert all(prompts_.token_ids(ids, "prompt 0") == [1, 2] for ids in kinds)


@pytest.mark.parametrize(
    "given",
    ["a b", {"role": "user"}, b"ab", {"a"}, 5, iter(["a"]), [1, 2], torch.tensor([1, 2]),
     torch.tensor(1), np.array([1, 2]), [{"role": "user", "content": "a"}]],
    ids=lambda given: type(given).__name__,
)  # fmt: skip
def test_what_is_no_list_of_prompts_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match="prompts must be a list"):
        prompts_._check_list(given)


def test_half_of_a_surrogate_pair_is_named() -> None:
    lm = worded()
    chat = [{"role": "user", "content": "a \udc00"}]
    for prompt, half in (("a \ud83d", r"\\ud83d"), (chat, r"\\udc00")):
        with pytest.raises(ValueError, match=f"prompt 1 has {half} in it, half of a surrogate"):
            lm.encode_prompts(["a", prompt])


def test_decode_has_the_shape_of_the_outcomes() -> None:
    lm = worded()
    y = torch.tensor([[[1, 2, EOS, 1], [EOS, 1, 1, 1]], [[3, 3, 0, 3], [2, EOS, EOS, EOS]]])
    assert lm.decode(y) == [["a b", ""], ["c c c", "b"]]
    assert lm.decode(y[0]) == ["a b", ""]
    assert lm.decode(y[0, 0]) == "a b"


# Errors --------------------------------------------------------------------------------------


def test_errors_say_what_to_do() -> None:
    lm = tiny_lm()
    with pytest.raises(ValueError, match="prompts is empty"):
        lm([])
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        lm([[1], []])
    with pytest.raises(TypeError, match=r"pass \[prompt\]"):
        lm("a b")
    with pytest.raises(ValueError, match="prompt 0 has 30 tokens, but only 29 fit"):
        lm([[1] * 30])
    lm([[1] * 29]).sample((2,))
    with pytest.raises(ValueError, match="the model knows 0 to 4"):
        lm([[7]])
    with pytest.raises(ValueError, match="no tokenizer"):
        lm(["text"])
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        tiny_lm(max_new_tokens=0)
    with pytest.raises(ValueError, match="context holds 32"):
        tiny_lm(max_new_tokens=33)
    with pytest.raises(ValueError, match="token_budget"):
        list(lm([[1]]).micro_batches(ALL[:2, None], 0))
    with pytest.raises(ValueError, match="trainable"):
        _ = lm.prior
    with pytest.raises(ValueError, match="already"):
        lm.trainable().trainable()
    model = tiny_model("gpt2")
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="eos_token_ids="):
        CausalLM(model, None, max_new_tokens=4)


def test_bad_values_are_refused() -> None:
    continuations = tiny_lm()(PROMPTS)
    with pytest.raises(ValueError, match="max_new_tokens = 4"):
        continuations.log_prob(torch.zeros(2, 3, 5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"expected \(n, 3, 4\)"):
        continuations.log_prob(torch.zeros(2, 2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="0 to 4, got 0 to 9"):
        continuations.log_prob(torch.full((1, 3, 4), 9).index_fill(2, torch.tensor([0]), 0))
    with pytest.raises(ValueError, match="integer token ids"):
        continuations.log_prob(torch.zeros(2, 3, 4))


def test_weights_that_are_not_finite_are_reported() -> None:
    model = tiny_model("llama")
    model.lm_head.weight.data[:] = math.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        CausalLM(model, None, max_new_tokens=4)([[1]]).sample((2,))


def test_forbidden_tokens_have_probability_zero() -> None:
    model = tiny_model("gpt2")
    plain = model.forward

    def forward(**kwargs):
        out = plain(**kwargs)
        out.logits[..., 2] = -math.inf
        return out

    model.forward = forward
    lm = CausalLM(model, None, max_new_tokens=LENGTH)
    log_prob = lm(PROMPTS).log_prob(each_prompt(ALL))
    assert not bool(log_prob.isnan().any())
    assert torch.allclose(log_prob.exp().sum(0), torch.ones(3, dtype=torch.float64))
    assert not bool((lm(PROMPTS).sample((500,)) == 2).any())
