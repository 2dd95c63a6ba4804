"""Weight averages: parameters, laws, and what cannot be averaged."""

import numpy as np
import pytest
import torch

from infer_align import Space, tilt
from infer_align.torch import weight_average
from tests.lm_zoo import all_outcomes, tiny_lm, tiny_tokenizer

torch.set_num_threads(1)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("weights", [None, [0.75, 0.25], [1.5, -0.5]])
def test_parameters_are_averaged(family, weights):
    """Every parameter is the weighted mean; the models stay as they were, the result frozen."""
    lms = [tiny_lm(family, seed=s, dtype=torch.float32) for s in (0, 1)]
    before = [{k: v.clone() for k, v in lm.module.state_dict().items()} for lm in lms]
    soup = weight_average(lms, weights)
    w = [0.5, 0.5] if weights is None else weights
    for name, got in soup.module.state_dict().items():
        want = w[0] * before[0][name].double() + w[1] * before[1][name].double()
        np.testing.assert_allclose(got.numpy(), want.float().numpy(), rtol=1e-6, atol=1e-7)
    for lm, state in zip(lms, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in lm.module.state_dict().items())
    assert not any(p.requires_grad for p in soup.module.parameters())
    assert not soup.is_trainable


def test_average_of_equal_models_is_the_model():
    """One model, or copies of it, average to itself: its law bit for bit."""
    lm, y = tiny_lm("llama", seed=4), all_outcomes()
    for soup in (weight_average([lm]), weight_average([lm, tiny_lm("llama", seed=4)], [0.5, 0.5])):
        assert torch.equal(soup().log_prob(y), lm().log_prob(y))


def test_it_is_a_reference():
    """A soup is normalised, can be tilted, and is neither geometric nor arithmetic mixture."""
    lms = [tiny_lm("gpt2", seed=s) for s in (0, 1)]
    soup, space = weight_average(lms), Space(all_outcomes())
    log_p = space.log_prob(soup())
    assert abs(float(log_p.logsumexp(0))) < 1e-10
    target = tilt(soup, lambda y: 1.0 * (y == 1).sum(-1), beta=1.0)
    want = log_p + (space.outcomes == 1).sum(-1)
    np.testing.assert_allclose(space.log_target(target), want - want.logsumexp(0), rtol=1e-9)
    a, b = (lm().log_prob(space.outcomes) for lm in lms)
    geometric = (a + b) / 2
    assert float((geometric - geometric.logsumexp(0) - log_p).abs().max()) > 0.1
    assert float((torch.logaddexp(a, b) - np.log(2) - log_p).abs().max()) > 0.1


def test_a_fitted_model_averages_with_its_prior():
    """Interpolation between a policy and its prior: what trainable() returns can be averaged."""
    prior = tiny_lm("gpt2", seed=0)
    policy = prior.trainable()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    half = weight_average([policy, prior])
    name, parameter = next(iter(prior.module.named_parameters()))
    got = dict(half.module.named_parameters())[name]
    np.testing.assert_allclose(got, parameter + 0.05, rtol=1e-9)
    assert all(p.requires_grad for p in policy.parameters())


def test_tokenizers_must_agree():
    """Equal shapes are not enough: the tokens must be the same."""
    one, other = tiny_lm(seed=0), tiny_lm(seed=1)
    one.tokenizer, other.tokenizer = tiny_tokenizer(), tiny_tokenizer()
    assert weight_average([one, other]).tokenizer is one.tokenizer
    other.tokenizer.add_tokens(["d"])
    with pytest.raises(ValueError, match="same tokens"):
        weight_average([one, other])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: weight_average([]), "at least one model"),
        (lambda: weight_average([tiny_lm()], [0.5, 0.5]), "a weight for each model"),
        (lambda: weight_average([tiny_lm()], [0.5]), "sum to one"),
        (lambda: weight_average([tiny_lm(), tiny_lm("llama")]), "one architecture"),
        (lambda: weight_average([tiny_lm(), tiny_lm(max_new_tokens=2)]), "max_new_tokens"),
        (lambda: weight_average([tiny_lm().trainable(lora=1)]), "has an adapter"),
    ],
)
def test_what_cannot_be_averaged_is_refused(make, message):
    """Each refusal names what differs and what to do."""
    with pytest.raises(ValueError, match=message):
        make()
