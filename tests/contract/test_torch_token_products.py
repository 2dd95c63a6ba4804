"""Token-level products of language models, against next-token laws multiplied by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from infer_align import Space, diagnostics, divergences, estimators
from infer_align.jax import markov, memoryless, token_product
from infer_align.targets import geometric_mixture, teacher, tilt
from infer_align.torch import TokenProduct, assess, fit
from infer_align.torch.token_streams import token_stream
from tests.lm_zoo import EOS, LENGTH, PROMPTS, VOCAB, all_outcomes, tiny_lm, tiny_tokenizer

torch.set_num_threads(1)
WEIGHTS = {"experts": (0.6, 0.9), "contrastive": (1.7, -0.7), "one is out": (0.0, 1.3)}
CASES = pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)


def pair(**options):
    options = {"token_budget": 100_000, **options}  # few passes: tests are slow by their number
    return [tiny_lm("gpt2", seed=1, **options), tiny_lm("llama", seed=2, **options)]


def next_tokens(lm, prompt, prefixes):
    """Log next-token laws by a plain forward pass, without cache or padding."""
    with torch.no_grad():
        logits = lm.module(torch.tensor([[*prompt, *prefix] for prefix in prefixes])).logits[:, -1]
    return logits.log_softmax(-1)


def by_hand(lms, weights, prompt):
    """Log-probability of every outcome: multiply, renormalise at each prefix, and sum."""
    laws, outcomes = {}, all_outcomes().tolist()
    for t in range(LENGTH):
        prefixes = sorted({tuple(row[:t]) for row in outcomes if EOS not in row[:t]})
        total = sum(w * next_tokens(lm, prompt, prefixes) for lm, w in zip(lms, weights))  # noqa: B905
        laws |= dict(zip(prefixes, total.log_softmax(-1).tolist(), strict=True))
    ends = [row.index(EOS) + 1 if EOS in row else LENGTH for row in outcomes]
    return np.array(
        [
            sum(laws[tuple(row[:t])][row[t]] for t in range(end))
            for row, end in zip(outcomes, ends, strict=True)
        ]
    )


@CASES
def test_log_prob_is_the_renormalised_product(weights):
    """All 341 outcomes of each prompt: the law by hand, which sums to one."""
    lms = pair()
    space = all_outcomes()[:, None, :].expand(-1, len(PROMPTS), -1)
    got = TokenProduct(lms, weights)(PROMPTS).log_prob(space).numpy()
    np.testing.assert_allclose(np.exp(got).sum(0), 1, rtol=1e-12)
    np.testing.assert_allclose(got[:, 1], by_hand(lms, weights, PROMPTS[1]), rtol=1e-9)
    np.testing.assert_allclose(got[:, 0], by_hand(lms, weights, PROMPTS[0]), rtol=1e-9)


@CASES
def test_samples_follow_log_prob(weights):
    """Samples with key-value caches have the scorer's numbers, and their law (chi-square)."""
    from scipy.stats import chi2

    product = TokenProduct(pair(), weights)
    n, law = 1500, product(PROMPTS[:2])
    y, log_prob = law.sample_with_log_prob((n,), generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(law.log_prob(y).numpy(), log_prob.numpy(), atol=1e-10)
    space = Space(all_outcomes())
    for k in range(2):
        p = np.exp(product(PROMPTS[k : k + 1]).log_prob(space.outcomes[:, None])[:, 0].numpy())
        count = np.bincount(space.index(y[:, k]), minlength=len(p))
        often = n * p >= 5
        rest = np.array([n * p[~often].sum(), count[~often].sum()])
        statistic = ((count - n * p)[often] ** 2 / (n * p)[often]).sum()
        statistic += (rest[1] - rest[0]) ** 2 / max(rest[0], 1)
        assert chi2.sf(statistic, often.sum()) > 1e-6
    assert product.counts["sampled_rows"] == 2 * n
    assert product.sample_score_difference(PROMPTS, n=8) < 1e-10


def test_one_model_to_the_power_one_is_itself():
    """Weight 1 changes nothing, and two halves of one model are that model."""
    lm = tiny_lm("qwen2", seed=3)
    y = all_outcomes()
    for product in (TokenProduct([lm], [1.0]), TokenProduct([lm, lm], [0.25, 0.75])):
        np.testing.assert_allclose(product().log_prob(y), lm().log_prob(y), rtol=1e-10)


def test_no_eos_several_eos_and_members_on_one_network():
    """EOS as the models have it; a policy and its prior share a module with an adapter."""
    for eos in ((), (3, 4)):
        product = TokenProduct(pair(eos_token_ids=eos), [1.2, -0.4])
        total = product([[1, 2]]).log_prob(all_outcomes(eos)[:, None]).logsumexp(0)
        assert abs(float(total)) < 1e-10
    base = tiny_lm("llama", seed=2)
    policy = base.trainable(lora=2)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.manual_seed(0)))
    product = TokenProduct([policy, base], [2.0, -1.0])
    got = product(PROMPTS[1:2]).log_prob(all_outcomes()[:, None])[:, 0].detach().numpy()
    np.testing.assert_allclose(got, by_hand([policy, base], [2.0, -1.0], PROMPTS[1]), rtol=1e-9)


def test_it_streams_its_next_token_laws():
    """Particle filters read its next-token laws, each network with a cache of its own."""
    lms, weights = pair(), (1.7, -0.7)
    stream = token_stream(TokenProduct(lms, weights)(PROMPTS[:2]))
    first = stream.start(2)
    second = stream.advance(torch.tensor([[0, 3], [1, 0]]), np.array([[0, 0], [0, 1]]))
    for k, prompt in enumerate(PROMPTS[:2]):
        for got, prefix in ((first[0, k], ()), (second[1, k], ((1, 0)[k],))):
            total = sum(w * next_tokens(lm, prompt, [prefix]) for lm, w in zip(lms, weights))  # noqa: B905
            np.testing.assert_allclose(got, total[0].log_softmax(-1), rtol=1e-9)


def test_a_token_product_is_not_the_sequence_product():
    """The two laws differ, by a KL that the normalisers at the prefixes account for."""
    lms, weights = pair(), [0.5, 0.5]
    space = Space(all_outcomes())
    per_token = space.log_prob(TokenProduct(lms, weights)())
    mixture = geometric_mixture([lm() for lm in lms], weights)
    per_sequence = space.log_target(mixture)
    gap = float(space.divergence(divergences.reverse_kl, per_token, per_sequence))
    assert gap > 0.05
    assert float(space.divergence(divergences.forward_kl, per_token, per_sequence)) > 0.05
    # log p_token = sum of w log p_i - sum of the prefixes' log-normalisers.
    ratio = (mixture.log_density(space.outcomes) - per_token).numpy()
    first = [next_tokens(lm, [0], [()]) for lm in lms]
    z = float((0.5 * first[0] + 0.5 * first[1]).logsumexp(-1))
    ended = (space.outcomes[:, 0] == EOS).numpy()
    np.testing.assert_allclose(ratio[ended], z, rtol=1e-9)


def test_jax_products_stay_in_their_family():
    """Memoryless and Markov products, against the product of their tables by hand."""
    rng = np.random.default_rng(0)
    a, b = ({"initial": rng.normal(size=3), "transition": rng.normal(size=(3, 3))} for _ in "ab")
    space = Space.sequences(3, 4, eos=2)
    w = (1.6, -0.6)
    found = token_product([a, b], w)
    got = np.asarray(markov(found, length=4, eos=2).log_prob(jnp.asarray(space.outcomes)))
    table = {k: w[0] * a[k] + w[1] * b[k] for k in a}
    table = {k: v - np.logaddexp.reduce(v, axis=-1, keepdims=True) for k, v in table.items()}
    want = []
    for row in space.outcomes:
        score, previous = 0.0, None
        for token in row:
            score += (table["initial"] if previous is None else table["transition"][previous])[
                token
            ]
            previous = token
            if token == 2:
                break
        want.append(score)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(np.exp(got).sum(), 1, rtol=1e-6)
    mixed = token_product([a, b["initial"]], w)  # memoryless and Markov: Markov
    want = w[0] * a["transition"] + w[1] * b["initial"]
    got = jax.nn.log_softmax(mixed["transition"])
    np.testing.assert_allclose(got, jax.nn.log_softmax(jnp.asarray(want)), rtol=1e-5)


def test_memoryless_products_are_sequence_products_unless_they_can_end():
    """Without EOS the two products agree; an EOS or a memory parts them."""
    p, q = np.log([0.6, 0.3, 0.1]), np.log([0.2, 0.3, 0.5])
    gaps = []
    for eos in (None, 2):
        space = Space.sequences(3, 4, eos=eos)
        per_token = memoryless(token_product([p, q], [0.5, 0.5]), length=4, eos=eos)
        laws = [memoryless(jnp.asarray(x), length=4, eos=eos) for x in (p, q)]
        log_p = [np.asarray(law.log_prob(jnp.asarray(space.outcomes))) for law in laws]
        sequence = 0.5 * log_p[0] + 0.5 * log_p[1]
        sequence = sequence - np.logaddexp.reduce(sequence)
        token = np.asarray(per_token.log_prob(jnp.asarray(space.outcomes)))
        gaps.append(float(np.exp(token) @ (token - sequence)))
    assert abs(gaps[0]) < 1e-6
    assert gaps[1] > 0.01


@pytest.mark.slow
def test_as_prior_proposal_and_teacher():
    """assess takes it as prior, policy and proposal; a fit as prior and as teacher."""
    product = TokenProduct(pair(), [1.5, -0.5])
    target = tilt(product, lambda y, prompts: (y == 1).sum(-1) * 1.0, beta=2.0)
    space = all_outcomes()
    exact = target.log_density(space[:, None].expand(-1, 2, -1), PROMPTS[:2]).logsumexp(0)
    for arguments in ({"policy": product}, {"policy": pair()[0], "proposal": product}):
        tree = assess(target=target, prompts=PROMPTS[:2], n=200, seed=1, **arguments)
        found = diagnostics.estimates(tree)["log_z"]
        assert abs(found.value - float(exact.mean())) < 5 * found.se
    policy = pair()[0].trainable()
    as_prior = fit(policy, target, estimators.f_dpg(divergences.jensen_shannon),
                   prompts=PROMPTS[:2], n=16, steps=1)  # fmt: skip
    assert math.isfinite(next(as_prior).metrics["grad_norm"])
    lesson = teacher(product)
    assert lesson.provides == {"log_density", "samples", "next_token"}
    run = fit(policy, lesson, estimators.maximum_likelihood(), prompts=PROMPTS[:2], n=32, steps=20,
              learning_rate=6e-3)  # fmt: skip
    entropy = [float(s.metrics["cross_entropy"]) for s in run]
    log_q = product(PROMPTS[:2]).log_prob(space[:, None].expand(-1, 2, -1))
    log_p = policy(PROMPTS[:2]).log_prob(space[:, None].expand(-1, 2, -1)).detach()
    start = tiny_lm("gpt2", seed=1)(PROMPTS[:2]).log_prob(space[:, None].expand(-1, 2, -1))
    kl = lambda p: float((log_q.exp() * (log_q - p)).sum(0).mean())
    assert kl(log_p) < 0.5 * kl(start)
    assert entropy[0] > np.mean(entropy[-5:])


def test_as_policy_its_trainable_member_is_fitted():
    """The gradient of the product's log-probability reaches the member, and is right."""
    policy, guide = tiny_lm("gpt2", seed=1).trainable(), tiny_lm("llama", seed=2)
    product = TokenProduct([policy, guide], [1.0, 0.5])
    parameters = list(product.parameters())
    assert len(parameters) == len(list(policy.parameters()))
    y = all_outcomes()
    log_p = product().log_prob(y)
    grad = torch.autograd.grad((log_p.exp()).sum(), parameters, allow_unused=True)
    assert max(float(g.abs().max()) for g in grad if g is not None) < 1e-12  # total mass is 1
    some = parameters[0]
    value = lambda: float(product().log_prob(y[:20]).detach().sum())
    (slope,) = torch.autograd.grad(product().log_prob(y[:20]).sum(), [some])
    index = divmod(int(slope.abs().argmax()), slope.shape[1])
    with torch.no_grad():
        some[index] += 1e-6
        up = value()
        some[index] -= 2e-6
        down = value()
    np.testing.assert_allclose(float(slope[index]), (up - down) / 2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenProduct([], []), "a weight for each model"),
        (lambda: TokenProduct(pair(), [1.0]), "a weight for each model"),
        (lambda: TokenProduct(pair(), [1.0, math.nan]), "finite"),
        (lambda: TokenProduct(pair(), [0.0, 0.0]), "not all 0"),
        (lambda: TokenProduct([tiny_lm(), tiny_lm(eos_token_ids=(3,))], [1, 1]), "eos_token_ids"),
        (lambda: TokenProduct([tiny_lm(), tiny_lm(max_new_tokens=3)], [1, 1]), "max_new_tokens"),
        (lambda: token_product([np.zeros(3)], [1.0, 1.0]), "a weight for each policy"),
        (lambda: token_product([np.zeros(3)], [0.0]), "not all 0"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    """Each refusal names what differs and what to do."""
    with pytest.raises(ValueError, match=message):
        make()


def test_other_tokens_are_refused():
    """Equal sizes are not enough: the tokens must be the same."""
    one, other = tiny_lm(), tiny_lm(seed=1)
    one.tokenizer, other.tokenizer = tiny_tokenizer(), tiny_tokenizer()
    product = TokenProduct([one, other], [1, 1])
    assert product.decode(torch.tensor([[1, 2, EOS, EOS]])) == ["a b"]
    assert (product.vocab_size, product.max_new_tokens) == (VOCAB, LENGTH)
    other.tokenizer.add_tokens(["d"])
    with pytest.raises(ValueError, match="same tokens"):
        TokenProduct([one, other], [1, 1])
