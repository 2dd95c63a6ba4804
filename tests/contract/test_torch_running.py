"""How a model is run: a row's numbers are its own, whatever stands beside it in a pass."""

import itertools

import numpy as np
import pytest
import torch
from transformers import (
    BartForCausalLM,
    BertLMHeadModel,
    BloomForCausalLM,
    Gemma2ForCausalLM,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaForCausalLM,
    Phi3ForCausalLM,
    ProphetNetForCausalLM,
    VaultGemmaForCausalLM,
    XLNetLMHeadModel,
)

from infer_align import diagnostics, tilt
from infer_align.estimators import none, reinforce
from infer_align.torch import (
    CausalLM,
    TokenProduct,
    assess,
    collect,
    fit,
    handling,
    length_rules,
    per_token,
    sampling,
)
from infer_align.torch.token_streams import token_stream
from tests.lm_sweep import LENGTH, definition, outcomes, spread, tiny, verdict
from tests.lm_zoo import EOS, PROMPTS, VOCAB, tiny_lm


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def no_reward(y, *prompts):
    return torch.zeros(y.shape[:-1], dtype=torch.float64)


# The sampler's cache ----------------------------------------------------------------------


def test_a_prompt_a_row_in_another_order() -> None:
    """As many rows as prompts, sorted by length: the cache was left in the prompts' order."""
    lm = tiny_lm()
    for n in (1, 2):
        assert lm.sample_score_difference([[1, 2], [3]], n=n, generator=generator(n)) < 1e-10


@pytest.mark.parametrize("order", list(itertools.permutations([0, 1, 3, 2]))[::9])
def test_draws_are_scored_alike_at_every_budget(order) -> None:
    prompts = [[*PROMPTS, [2, 0, 1]][i] for i in order]
    lm = tiny_lm(max_new_tokens=2)
    for n in (1, 2):
        y, _ = lm(prompts).sample_with_log_prob((n,), generator=generator(n))
        scored = lm(prompts).log_prob(y)
        for budget in (1, 5, 7, 9, 12, 16, 18, 21, 27, 33, 45):
            lm._network.token_budget = budget
            again, drawn = lm(prompts).sample_with_log_prob((n,), generator=generator(n))
            assert torch.equal(again, y)
            assert (drawn - scored).abs().max() < 1e-10, budget
        lm._network.token_budget = 2048


def test_a_step_on_one_outcome_a_prompt_starts_at_the_prior() -> None:
    lm = tiny_lm()
    target = tilt(lm, no_reward, beta=1.0)
    estimator = reinforce(baseline=none())
    steps = fit(lm.trainable(), target, estimator, prompts=PROMPTS[:2], n=1, steps=1)
    assert abs(next(iter(steps)).metrics["kl_prior"]) < 1e-10


def test_an_outcome_of_every_chunk_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    rows, plain = [], sampling.sample

    def wrong_at_last(network, prompts, index, length, source):
        tokens, log_prob = plain(network, prompts, index, length, source)
        rows.append(len(index))
        return tokens, log_prob + 0.5 * (len(index) == 2)

    monkeypatch.setattr(sampling, "sample", wrong_at_last)
    draws = collect(lm, tilt(lm, no_reward, beta=1.0), PROMPTS[:2], n=129)
    assert rows == [256, 2]
    assert draws.sample_score_difference == pytest.approx(0.5)


# What a network bears --------------------------------------------------------------------


def small(kind, *, seed: int = 0, **settings):
    """A model with random weights far from uniform, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = kind(kind.config_class(**settings)).to(torch.float64).eval()
        spread(made)
    return made


SMALL = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
    "bos_token_id": 0, "eos_token_id": EOS, "pad_token_id": 3,
}  # fmt: skip


def phi3() -> Phi3ForCausalLM:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.0],
        "long_factor": [4.0, 9.0],
        "original_max_position_embeddings": 6,
    }
    return small(Phi3ForCausalLM, **SMALL, rope_parameters=rope, original_max_position_embeddings=6)


def bart() -> BartForCausalLM:
    return small(
        BartForCausalLM, vocab_size=VOCAB, d_model=16, decoder_layers=2, decoder_ffn_dim=24,
        decoder_attention_heads=4, max_position_embeddings=32, bos_token_id=0, eos_token_id=EOS,
        pad_token_id=3, is_decoder=True,
    )  # fmt: skip


def mamba() -> MambaForCausalLM:
    return small(
        MambaForCausalLM, vocab_size=VOCAB, hidden_size=16, state_size=4, num_hidden_layers=2,
        time_step_rank=4, bos_token_id=0, eos_token_id=EOS,
    )  # fmt: skip


def hybrid() -> Lfm2ForCausalLM:
    return small(Lfm2ForCausalLM, **SMALL, layer_types=["conv", "full_attention"])


def as_lm(model, length: int = LENGTH) -> CausalLM:
    return CausalLM(model, None, max_new_tokens=length, eos_token_ids=(EOS,))


def bloom() -> BloomForCausalLM:
    """Its rows are NaN where padding is all that they see."""
    return small(
        BloomForCausalLM, vocab_size=VOCAB, hidden_size=16, n_layer=2, n_head=4, bos_token_id=0,
        eos_token_id=EOS,
    )  # fmt: skip


KINDS = {"bart": bart, "bloom": bloom, "mamba": mamba, "hybrid": hybrid}


@pytest.mark.parametrize("kind", KINDS)
def test_networks_that_padding_would_change(kind) -> None:
    """Rows beside each other and through the cache have the numbers they have alone."""
    model = KINDS[kind]()
    way, gap = verdict(model)
    assert way == ("right" if kind == "hybrid" else "right (without: positions, padded)")
    assert gap < 1e-5  # Mamba computes its states in float32
    # One token after the other, of prompts of unequal lengths, as a particle filter draws them.
    law = as_lm(model)(PROMPTS)
    stream, y = token_stream(law), torch.tensor([[1, 2, 0], [3, 3, 1]])[:, None].expand(-1, 3, -1)
    laws = [stream.start(2), stream.advance(y[..., 0]), stream.advance(y[..., 1], ancestors_same())]
    picked = torch.stack([p.gather(-1, y[..., t, None])[..., 0] for t, p in enumerate(laws)], -1)
    assert (law.log_prob_per_token(y) - picked).abs().max() < 1e-5


def ancestors_same() -> np.ndarray:
    return np.array([[0, 0, 0], [1, 1, 1]])


def test_an_untouched_copy_of_a_network_without_positions_stays_the_prior() -> None:
    lm = as_lm(bart(), 4)
    steps = fit(lm.trainable(), tilt(lm, no_reward, beta=1.0), reinforce(), prompts=PROMPTS, n=4)
    metrics = next(iter(steps)).metrics
    assert abs(metrics["kl_prior"]) < 1e-10
    assert metrics["grad_norm"] < 1e-8


def test_a_product_with_a_network_without_positions() -> None:
    product = TokenProduct([as_lm(bart()), tiny_lm(max_new_tokens=LENGTH)], [1.5, -0.5])
    total = product(PROMPTS).log_prob(outcomes()[:, None].expand(-1, 3, -1)).exp().sum(0)
    assert (total - 1).abs().max() < 1e-12
    assert product.sample_score_difference(PROMPTS, n=8, generator=generator()) < 1e-10


def test_a_batch_on_both_sides_of_a_switch_is_split() -> None:
    """Phi-3's positions change beyond 6 tokens: prompts of 2 and 7 with 4 new ones."""
    model = phi3()
    lm, prompts = as_lm(model, LENGTH), [[1, 2], [0, 1, 2, 3, 1, 2, 3]]
    rows = outcomes()[:, None].expand(-1, 2, -1)
    right = torch.stack([definition(model, p, alone=True) for p in prompts], dim=1)
    assert (right.exp().sum(0) - 1).abs().max() < 1e-12
    assert (lm(prompts).log_prob(rows) - right).abs().max() < 1e-10
    assert lm.sample_score_difference(prompts, n=20, generator=generator()) < 1e-10
    shuffled = torch.tensor([3, 0, 100, 7])  # any rows of the batch, in any order
    found = lm(prompts).log_prob_rows(rows, shuffled)
    assert (found - right.reshape(-1)[shuffled]).abs().max() < 1e-10


def test_a_row_that_crosses_a_switch_is_refused() -> None:
    lm = as_lm(phi3(), 4)
    assert lm.sample_score_difference([[1, 2]], n=8, generator=generator()) < 1e-10
    with pytest.raises(ValueError, match="5 tokens and 4 new ones cross 6 tokens, where Phi3"):
        lm([[1, 2], [0, 1, 2, 3, 1]])
    as_lm(phi3(), 2)([[0, 1, 2, 3, 1]])  # reads 6: the last new token is never read


def test_a_network_that_is_not_causal_is_refused() -> None:
    model = small(BertLMHeadModel, **{**SMALL, "is_decoder": False})
    lm = as_lm(model)
    with pytest.raises(ValueError, match=r"BertLMHeadModel in .*64 gives a row other numb"):
        lm(PROMPTS).sample((2,))
    with pytest.raises(ValueError, match="BertLMHeadModel"):
        lm([[1, 2]]).log_prob(torch.tensor([[[1, 2, 3]]]))


def test_a_context_of_minus_one_is_no_limit() -> None:
    """XLNet, which then is refused for what it is: it sees later tokens."""
    model = small(
        XLNetLMHeadModel, vocab_size=VOCAB, d_model=16, n_layer=2, n_head=4, d_inner=24,
        bos_token_id=0, eos_token_id=EOS, pad_token_id=3,
    )  # fmt: skip
    lm = as_lm(model)
    assert lm._network.context_length is None
    with pytest.raises(ValueError, match=r"XLNetLMHeadModel in .* gives a row other numbers"):
        lm(PROMPTS).sample((2,))


class LostWindow(LlamaForCausalLM):
    """Its cache moves all positions once there are more than 12 tokens."""

    def forward(
        self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, **rest
    ):
        if past_key_values is not None and position_ids is not None:
            position_ids = position_ids + 3 * (position_ids >= 12)
        return super().forward(input_ids, attention_mask, position_ids, past_key_values, **rest)


def test_a_fault_beyond_a_window_is_seen_where_rows_get_there() -> None:
    model = small(LostWindow, **SMALL, a_window=12)
    lm = as_lm(model)
    prompts = [[1, 2, 3, 0] * 3, [2, 3]]
    assert lm._network.handling(0, 12).cached
    assert not lm._network.handling(0, 14).cached
    assert lm.sample_score_difference(prompts, n=8, generator=generator()) < 1e-10


@pytest.mark.parametrize("kind", [Gemma2ForCausalLM, VaultGemmaForCausalLM])
def test_rows_apart_by_more_than_a_window(kind) -> None:
    """In a window of padding these attend to nothing: NaN, in all of the row."""
    way, gap = verdict(tiny(kind.config_class, kind))
    assert way == "right (without: positions, mixed, padded)"
    assert gap < 1e-5
    model, pads = tiny(kind.config_class, kind), torch.arange(20)[None]
    mask = (pads < 4).long()
    logits = model(input_ids=pads % VOCAB, attention_mask=mask, position_ids=pads).logits
    assert logits[:, :4].isnan().any()  # why; if this fails, Transformers has changed


def test_rows_of_the_check_fit_the_context() -> None:
    """Short rows for the wide gap: Gemma-2 has a window of 4096 in a context of 8192."""
    assert list(handling._pairs(4096, 0, 8192)) == [(4097, 4100), (4, 4101)]
    assert list(handling._pairs(4096, 0, 4100)) == [(4097, 4100)]
    assert list(handling._pairs(20, 6, 64)) == [(21, 24), (10, 31)]
    assert list(handling._pairs(0, 0, 64)) == [(4, 7)]
    assert not list(handling._pairs(0, 6, 9))


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_the_check_keeps_the_columns_that_it_reads(kind: str) -> None:
    """Of a vocabulary of 256,000 the columns of a long row would take gigabytes."""
    network = (tiny_lm(kind) if kind == "llama" else as_lm(mamba()))._network
    assert network._keeps_logits
    ids = torch.tensor([[1, 2, 3, 0, 1, 2], [2, 2, 1, 0, 3, 1]])
    whole = network(ids, None, None, 6)[0]
    for keep, only in ((4, 2), (6, 3), (2, None), (3, 3)):
        found = network(ids, None, None, keep, only=only)[0]
        assert torch.allclose(found, whole[:, 6 - keep :][:, :only], atol=1e-6)
    network._keeps_logits = False  # as classes that give all columns
    assert torch.allclose(network(ids, None, None, 4, only=2)[0], whole[:, 2:4], atol=1e-6)


def test_a_network_whose_past_depends_on_its_length_is_refused() -> None:
    """ProphetNet; in float64 a mask that hides nothing gives NaN, which is not the reason."""
    for dtype in (torch.float32, torch.float64):
        model = tiny(ProphetNetForCausalLM.config_class, ProphetNetForCausalLM).to(dtype)
        with pytest.raises(ValueError, match=r"ProphetNet.* gives a row other numbers token by"):
            as_lm(model)(PROMPTS).sample((2,))


@pytest.mark.parametrize("family", ["gpt2", "mistral_window"])
def test_attention_bears_everything(family) -> None:
    handling._known.clear()
    assert tiny_lm(family)._network.handling(0, 9) == handling.Handling()


def test_a_check_that_cannot_tell_is_repeated() -> None:
    """A head of zeros hides what a network without positions does with padding."""
    model = bart()
    head = model.lm_head.weight.detach().clone()
    lm = as_lm(model)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        assert lm._network.handling(0, 4).padded
        model.lm_head.weight.copy_(head)
    assert not lm._network.handling(0, 4).padded
    assert lm.sample_score_difference(PROMPTS, n=8, generator=generator()) < 1e-10


def test_the_check_runs_once_a_class_and_leaves_no_trace() -> None:
    model, passes = bart(), []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    lm, again = as_lm(model), as_lm(bart())
    handling._known.clear()
    state = torch.get_rng_state()
    lm._network.handling(0, 4)
    # Alone; beside another; padded: a prompt pass and a step; by length: 3 passes.
    assert 4 <= len(passes) <= 8
    assert torch.equal(torch.get_rng_state(), state)
    assert not lm.counts
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert list(handling._known) == list(handling._known)[:1]
    passes.clear()
    lm._network.handling(0, 4)
    again._network.handling(0, 4)
    assert not passes
    llama = tiny_lm("llama")
    llama.module.register_forward_pre_hook(lambda *_: passes.append(1))
    handling._known.clear()
    llama._network.handling(0, 4)
    assert len(passes) == 5


def test_length_rules_are_read() -> None:
    def of(**settings):
        return length_rules.read(LlamaConfig(**{**SMALL, **settings}))

    assert of() == length_rules.LengthRules()
    assert of(sliding_window=7, attention_chunk_size=9, max_window_layers=5).marks == (7, 9)
    assert of(index_topk=3, chunk_size_feed_forward=8).marks == (3,)
    rope = {"rope_theta": 1e4, "factor": 2.0}
    assert of(rope_parameters={**rope, "rope_type": "dynamic"}).end == 32
    assert of(rope_parameters={**rope, "rope_type": "linear"}) == length_rules.LengthRules()
    long = length_rules.read(phi3().config)
    assert long.switches == (6,)
    assert [long.side(p, n, "it") for p, n in ((1, 6), (3, 4), (7, 4), (6, 1))] == [0, 0, 1, 0]
    assert long.around(0) == (0, 6)
    assert long.around(1) == (6, None)
    with pytest.raises(ValueError, match="cross 6 tokens"):
        long.side(6, 2, "it")
    end = length_rules.LengthRules(end=10)
    assert end.side(7, 4, "it") == 0
    with pytest.raises(ValueError, match="beyond 10 tokens"):
        end.side(8, 4, "it")


# Numbers that cannot be right ------------------------------------------------------------


def test_nan_is_an_error_in_scoring_too() -> None:
    lm = tiny_lm()
    y = torch.tensor([[[1, 2, 3, 0]]])
    lm([[1, 2]]).log_prob(y)
    broken = lm.trainable()
    with torch.no_grad():
        next(iter(broken.parameters())).fill_(float("nan"))
    for use in (
        lambda: broken([[1, 2]]).log_prob(y),
        lambda: broken([[1, 2]]).sample((2,)),
        lambda: per_token(broken([[1, 2]]), lm([[1, 2]]), y),
        lambda: token_stream(broken([[1, 2]])).start(2),
    ):
        with pytest.raises(FloatingPointError, match="not finite"):
            use()


def shifted(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    plain = sampling.sample

    def sample(*given):
        tokens, log_prob = plain(*given)
        return tokens, log_prob + size

    monkeypatch.setattr(sampling, "sample", sample)


def test_a_step_on_a_batch_of_another_law_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    policy = lm.trainable()
    before = [p.detach().clone() for p in policy.parameters()]
    limit = policy(PROMPTS).sample_score_limit
    assert limit == pytest.approx(1e-5 * 2)  # float64, 4 tokens
    shifted(monkeypatch, 1.1 * limit)
    target = tilt(lm, lambda y, *_: (y == 3).double().sum(-1), beta=1.0)
    with pytest.raises(ValueError, match="no step was taken"):
        list(fit(policy, target, reinforce(), prompts=PROMPTS, n=8, steps=1))
    assert all(torch.equal(p, q) for p, q in zip(policy.parameters(), before, strict=True))
    shifted(monkeypatch, -0.2 * limit)  # 0.9 in all
    list(fit(policy, target, reinforce(), prompts=PROMPTS, n=8, steps=1))


def test_no_interval_is_claimed_of_another_law(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    target = tilt(lm, lambda y, *_: 0.1 * (y == 3).double().sum(-1), beta=1.0)
    plain = assess(lm, target, [[1, 2]], n=600)
    assert diagnostics.estimates(plain)["log_z"].reliable
    shifted(monkeypatch, 1e-3)
    found = assess(lm, target, [[1, 2]], n=600)
    assert not any(e.reliable for e in diagnostics.estimates(found).values())
    assert not found["diagnostics/contexts"]["log_z"].sel(statistic="reliable").any()
    assert "differ by up to 0.001 nats" in found["diagnostics"].attrs["notes"]
