"""Programs of several sites whose outcomes cannot be listed, and spaces that are none."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch

from infer_align import exact
from infer_align.spaces import Space, sites

BACKENDS = {
    "numpyro": (numpyro, numpyro_dist, jnp.asarray),
    "pyro": (pyro, pyro_dist, lambda x: torch.tensor(np.asarray(x))),
}
HALF = [0.5, 0.5]


def continuous_last(ppl, dist, array):
    style = ppl.sample("style", dist.Bernoulli(array(0.5)))
    ppl.sample("height", dist.Normal(style, array(1.0)))


def continuous_first(ppl, dist, array):
    height = ppl.sample("height", dist.Normal(array(0.0), array(1.0)))
    ppl.sample("style", dist.Bernoulli(0.5 + 0.0 * height))


def unbounded(ppl, dist, array):
    ppl.sample("style", dist.Bernoulli(array(0.5)))
    ppl.sample("count", dist.Poisson(array(3.0)))


def long_word(ppl, dist, array):
    ppl.sample("style", dist.Bernoulli(array(0.5)))
    ppl.sample("y", dist.Categorical(array(HALF)).expand([30]).to_event(1))


def two_words(ppl, dist, array):
    for name in ("y", "z"):
        ppl.sample(name, dist.Categorical(array(HALF)).expand([8]).to_event(1))


def subsampled(ppl, dist, array):
    ppl.sample("style", dist.Bernoulli(array(0.5)))
    with ppl.plate("rows", 4, subsample_size=2):
        ppl.sample("good", dist.Bernoulli(array(0.5)))


def plate(ppl, dist, array):
    ppl.sample("style", dist.Bernoulli(array(0.5)))
    with ppl.plate("rows", 2):
        ppl.sample("good", dist.Bernoulli(array(0.5)))


def early_plate(ppl, dist, array):
    """As many values of the plate as of the site after it."""
    ppl.sample("style", dist.Bernoulli(array(0.5)))
    with ppl.plate("rows", 2):
        ppl.sample("good", dist.Bernoulli(array(0.5)))
    ppl.sample("last", dist.Bernoulli(array(0.5)))


def dynamic(ppl, dist, array):
    style = ppl.sample("style", dist.Bernoulli(array(0.5)))
    if style == 1:
        ppl.sample("extra", dist.Bernoulli(array(0.5)))


def other_name(ppl, dist, array):
    style = ppl.sample("style", dist.Bernoulli(array(0.5)))
    ppl.sample("left" if style == 1 else "right", dist.Bernoulli(array(0.5)))


def lengths(ppl, dist, array):
    style = ppl.sample("style", dist.Bernoulli(array(0.5)))
    law = dist.Categorical(array(HALF)).expand([3 if style == 1 else 2])
    ppl.sample("y", law.to_event(1))


def same_name(ppl, dist, array):
    ppl.sample("y", dist.Bernoulli(array(0.5)))
    ppl.sample("y", dist.Bernoulli(array(0.5)))


def name_of_a_factor(ppl, dist, array):
    y = ppl.sample("y", dist.Bernoulli(array(0.5)))
    ppl.sample("z", dist.Bernoulli(array(0.5)))
    ppl.factor("y", 1.0 * y)


def impossible(ppl, dist, array):
    style = ppl.sample("style", dist.Bernoulli(array(0.5)))
    good = ppl.sample("good", dist.Bernoulli(array(0.5)))
    ppl.factor("none", -np.inf + 0.0 * style * good)


REFUSED = {
    continuous_last: "latent site 'height' of program .* cannot be listed: its Normal is",
    continuous_first: "Normal, which is not known here as a finite set|latent sites .height, style",
    unbounded: "latent site 'count' .* its Poisson is continuous, unbounded or unknown",
    long_word: r"latent site 'y' .* 1.07e\+09 sequences of 30 tokens, too many to list",
    subsampled: "plate 'rows' of program .* draws a subsample",
    plate: r"latent site 'good' .* has batch shape \(2,\)",
    early_plate: r"latent site 'good' .* has batch shape \(2,\)",
    dynamic: r"only for some values of others: at style = 0.* no further site.*in every run",
    other_name: r"\('style', 'left'\) beside \('style', 'right'\)",
    lengths: r"values of different shapes, .*'y': \(2,\).*'y': \(3,\).*pad sequences",
    same_name: "two sites named 'y'; give each its own name",
    name_of_a_factor: "two sites named 'y'; give each its own name|unique names but got `y`",
    impossible: "accepts none of the 4 outcomes",
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("program", REFUSED, ids=lambda program: program.__name__)
def test_what_cannot_be_listed_is_refused_with_a_sentence(program, backend):
    with pytest.raises((ValueError, AssertionError), match=REFUSED[program]):
        exact.solve(lambda: program(*BACKENDS[backend]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_there_are_limits_of_outcomes_and_of_runs(backend, monkeypatch):
    program = lambda: two_words(*BACKENDS[backend])
    monkeypatch.setattr(sites, "MAX_GROUPS", 20)
    with pytest.raises(ValueError, match="'z', and there are over 20; draw the site that has most"):
        exact.solve(program)
    monkeypatch.setattr(sites, "MAX_GROUPS", 3)  # whose outcomes come to 12,288 numbers
    monkeypatch.setattr(sites, "MAX_ENTRIES", 10_000)
    with pytest.raises(ValueError, match=r"too many outcomes of its sites \(y, z\).* over 10,000"):
        exact.solve(program)


def test_sites_with_other_values_in_another_context_are_refused():
    def program(trials):
        style = numpyro.sample("style", numpyro_dist.Bernoulli(0.5))
        numpyro.sample("count", numpyro_dist.Binomial(trials, 0.25 + 0.5 * style))

    one = exact.solve(program, jnp.array([2, 2]))
    assert one.space.outcomes["count"].tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(ValueError, match=r"sums to 0\.6875 over the 4 outcomes .* needs 1"):
        exact.solve(program, jnp.array([1, 2]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_site_has_no_marginal_and_keeps_its_engine(backend):
    ppl, dist, array = BACKENDS[backend]
    answer = exact.solve(lambda: ppl.sample("y", dist.Categorical(array([0.25, 0.75]))))
    assert answer.engine == "sequences"
    with pytest.raises(ValueError, match=r"has one site.*answer\.law"):
        answer.marginal("y")


PAIRS = {"a": np.array([0, 0, 1]), "b": np.array([[1, 2], [2, 1], [1, 2]])}


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        ({}, "at least one site"),
        ({"a": np.arange(2), "b": np.arange(3)}, "different numbers of outcomes"),
        ({"a": np.zeros(2), "b": np.ones(2)}, "is listed 2 times"),
        ({"a": np.zeros(0)}, "at least one outcome"),
    ],
)
def test_lists_of_sites_that_are_no_space(outcomes, message):
    with pytest.raises(ValueError, match=message):
        Space(outcomes)


@pytest.mark.parametrize(
    ("sampled", "message"),
    [
        (np.zeros((2, 3)), r"have one array and this space has sites \['a', 'b'\]"),
        ({"a": np.zeros(2)}, r"have sites \['a'\] and this space"),
        ({"a": np.zeros(2), "b": np.zeros((2, 3))}, "of site 'b' of shape"),
        ({"a": np.zeros(2), "b": np.ones((3, 2))}, "different leading shapes"),
        ({"a": np.array([1]), "b": np.array([[2, 1]])}, r"not in this space, .*\[1, 2, 1\]"),
    ],
)
def test_samples_that_are_not_of_the_sites(sampled, message):
    with pytest.raises(ValueError, match=message):
        Space(PAIRS).index(sampled)


def test_a_space_of_sites_finds_outcomes_by_name():
    swapped = {"b": np.array([[[1, 2], [2, 1]]]), "a": np.array([[1, 0]])}
    assert Space(PAIRS).index(swapped).tolist() == [[2, 1]]
