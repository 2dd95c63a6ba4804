"""Targets and proposals in torch as a `Source` for `infer_align.samplers`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infer_align import _supports
from infer_align._numerics import as_real
from infer_align.samplers import (
    Drawn,
    TokenStream,
    check_components,
    check_density_shape,
    mixture_log_weights,
)
from infer_align.targets import Target, add_potential, check_provides
from infer_align.torch._drawing import draw
from infer_align.torch.contexts import Contexts, bind
from infer_align.torch.continuations import Continuations
from infer_align.torch.pyro import Program, ProgramPrior

__all__ = ["Mixture", "mixture", "source"]

CHUNK = 256
"""Outcomes per prompt drawn or scored at once."""


def source(
    target: Target | Program,
    proposal: Any = None,
    prompts: Sequence[Any] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    seed: int = 0,
) -> "TorchSource":
    """A target and a proposal, to sample from with `infer_align.samplers`.

    Parameters
    ----------
    target : Pyro program or Target
    proposal : callable from prompts to a distribution, or Distribution, optional
        What is drawn from: a `CausalLM`, fitted or not, a `mixture`, or a distribution. Default:
        the target's prior.
    prompts, columns
        Contexts, as for `infer_align.torch.fit`.
    seed : int
        Of all draws, and of the decisions of the samplers.

    Returns
    -------
    Source
        Without gradients. Log-densities are NumPy float64, and where the proposal is the prior,
        log P − log q of a draw is exactly the potential: the prior is not scored again.

    Raises
    ------
    ValueError
        For a target without a density; as `infer_align.torch.fit` for contexts that do not fit the
        target, and for a proposal with other contexts.

    Examples
    --------
    >>> import pyro, torch, pyro.distributions as dist
    >>> from infer_align.torch import source
    >>> def program():
    ...     y = pyro.sample("y", dist.Categorical(torch.tensor([0.5, 0.5])))
    ...     pyro.factor("reward", 2.0 * y)
    >>> drawn = source(program).draw(4)
    >>> ((drawn.log_target - drawn.log_proposal) / 2 == drawn.outcomes.numpy()).all().item()
    True
    """
    bound, contexts = bind(target, prompts, columns)
    check_provides(bound, frozenset({"log_density"}), "a sampler")
    return TorchSource(bound, proposal, contexts, seed)


class TorchSource:
    """What `source` returns; see `infer_align.samplers.Source`.

    Parameters
    ----------
    target : Target
    proposal : Distribution, callable or None
    contexts : Contexts
    seed : int
    """

    def __init__(self, target: Target, proposal: Any, contexts: Contexts, seed: int) -> None:
        every = torch.arange(len(contexts))
        self.target, self.name = target, target.name
        self._arguments = contexts.of_target(every)
        self._prior = _by_site(target.given(*self._arguments))
        self.proposal = None if proposal is None else _given(proposal, contexts.of_policy(every))
        self.shape: tuple[int, ...] = tuple(self._prior.batch_shape)
        if tuple(self._distribution.batch_shape) != self.shape:
            raise ValueError(
                f"target {target.name!r} has contexts of shape {self.shape} and its proposal of "
                f"shape {tuple(self._distribution.batch_shape)}; give both the same contexts"
            )
        is_prior = proposal is None or proposal is target.prior
        self.log_bound: Any = target.log_bound if is_prior else None
        self.rng = np.random.default_rng([seed, 1])
        self._generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def draw(self, n: int) -> Drawn:
        """n fresh outcomes per context.

        Parameters
        ----------
        n : int

        Returns
        -------
        Drawn
            Outcomes on the device of the model.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        outcomes, log_q, log_p = [], [], []
        for start in range(0, n, CHUNK):
            size = min(CHUNK, n - start)
            y, drawn = draw(self._distribution, size, self._generator)
            outcomes.append(y)
            log_q.append(self._host(drawn))
            prior = drawn if self.proposal is None else _supports.log_prob(self._prior, y)
            log_p.append(self._add(prior, y))
        return Drawn(_joined(outcomes), np.concatenate(log_q), np.concatenate(log_p))

    @torch.no_grad()
    def log_target(self, outcomes: Any) -> np.ndarray:
        """log P of outcomes.

        Parameters
        ----------
        outcomes : tensor or dict of tensors, shape (n, *contexts, ...)

        Returns
        -------
        array, shape (n, *contexts)
            NumPy float64.
        """
        parts = [self._add(_supports.log_prob(self._prior, y), y) for y in _parts(outcomes)]
        return np.concatenate(parts)

    @torch.no_grad()
    def log_proposal(self, outcomes: Any) -> np.ndarray:
        """log q of outcomes.

        Parameters
        ----------
        outcomes : tensor or dict of tensors, shape (n, *contexts, ...)

        Returns
        -------
        array, shape (n, *contexts)
            NumPy float64.
        """
        return np.concatenate(
            [self._host(_supports.log_prob(self._distribution, y)) for y in _parts(outcomes)]
        )

    @torch.no_grad()
    def log_target_se(self, outcomes: Any) -> np.ndarray | None:
        """Standard error of log P of outcomes, None unless the potential is an estimate.

        Parameters
        ----------
        outcomes : tensor or dict of tensors, shape (n, *contexts, ...)

        Returns
        -------
        array, shape (n, *contexts), or None
            NumPy float64.
        """
        spread = self.target.log_potential_se
        if spread is None:
            return None
        parts = [torch.as_tensor(spread(y, *self._arguments)) for y in _parts(outcomes)]
        return np.concatenate([self._host(x) for x in parts])

    def tokens(self) -> TokenStream:
        """The proposal token by token.

        Returns
        -------
        TokenStream

        Raises
        ------
        ValueError
            If its outcomes are not token sequences.
        """
        from infer_align.torch.token_streams import token_stream

        return token_stream(self._distribution, self.shape)

    @property
    def _distribution(self) -> Any:
        """The proposal."""
        return self._prior if self.proposal is None else self.proposal

    def _add(self, log_prior: Tensor, y: Any) -> np.ndarray:
        """Log prior + log potential."""
        potential = torch.as_tensor(self.target.log_potential(y, *self._arguments))
        return add_potential(self._host(log_prior), self._host(potential), self.name)

    def _host(self, x: Tensor) -> np.ndarray:
        """In NumPy float64, of shape (n, *contexts)."""
        host = as_real(x, f"a log-density of {self.name!r}").detach().double().cpu().numpy()
        check_density_shape(host.shape, self)
        return host


@dataclass(frozen=True)
class Mixture:
    """A mixture of distributions over the same outcomes; see `mixture`.

    Parameters
    ----------
    components : tuple of Distribution, or of callables from contexts to one
    log_weights : tuple of float
        Normalised.
    """

    components: tuple[Any, ...]
    log_weights: tuple[float, ...]

    def __call__(self, *contexts: Any) -> "Mixture":
        """The mixture given the contexts.

        Parameters
        ----------
        *contexts
            Of the components that are callables; distributions stay as they are.
        """
        given = tuple(_given(d, contexts) for d in self.components)
        check_components(given)
        return Mixture(given, self.log_weights)

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the contexts."""
        return torch.Size(self.components[0].batch_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Any:
        """Outcomes, each of a component of its own, from torch's default generator.

        Parameters
        ----------
        sample_shape : sequence of int

        Returns
        -------
        tensor or dict, shape (*sample_shape, *contexts, ...)
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        weights = torch.tensor(self.log_weights, dtype=torch.float64).exp()
        choice = torch.distributions.Categorical(weights).sample(shape)
        drawn = [d.sample(torch.Size(sample_shape)) for d in self.components]
        if isinstance(drawn[0], dict):
            return {site: _select(choice, [y[site] for y in drawn]) for site in drawn[0]}
        return _select(choice, drawn)

    def log_prob(self, value: Any) -> Tensor:
        """log Σ_k a_k q_k(y), exact.

        Parameters
        ----------
        value : tensor or dict, shape (n, *contexts, ...)

        Returns
        -------
        tensor, shape (n, *contexts)
        """
        terms = [
            a + _supports.log_prob(d, value)
            for a, d in zip(self.log_weights, self.components, strict=True)
        ]
        return torch.logsumexp(torch.stack(terms), dim=0)


def mixture(components: Sequence[Any], weights: Sequence[float]) -> Mixture:
    r"""A mixture of distributions as a proposal, :math:`q(y) = \sum_k a_k q_k(y)`.

    With the prior as one component P/q stays below the potential over its share: a proposal that
    misses a part of the target costs accuracy, not correctness (defensive mixtures: Hesterberg
    1995). Every component is drawn from and scored at each call.

    Parameters
    ----------
    components : sequence of Distribution, or of callables from prompts to one
        `CausalLM` models, for instance: a policy and its prior.
    weights : sequence of float
        Positive; scaled to sum 1.

    Returns
    -------
    Mixture
        With ``sample`` and ``log_prob``; called with prompts, the mixture given these.

    Raises
    ------
    ValueError
        For another number of weights, or weights that are not positive.

    Examples
    --------
    >>> import torch, pyro.distributions as dist
    >>> from infer_align.torch import mixture
    >>> coin = lambda p: dist.Bernoulli(torch.tensor(p))
    >>> both = mixture([coin(0.2), coin(0.6)], [3.0, 1.0])
    >>> round(float(both.log_prob(torch.tensor(1.0)).exp()), 6)     # (3·0.2 + 0.6)/4
    0.3
    """
    return Mixture(tuple(components), mixture_log_weights(components, weights))


def _given(proposal: Any, contexts: tuple[Any, ...]) -> Any:
    if isinstance(proposal, Mixture):
        return proposal(*contexts)
    if hasattr(proposal, "log_prob"):
        return proposal
    if not callable(proposal):
        raise TypeError(
            "a proposal is a distribution or a callable from prompts to one, got "
            f"{type(proposal).__name__}"
        )
    return proposal(*contexts)


@torch.no_grad()
def _by_site(prior: Any) -> Any:
    """The distribution of a program's only latent site, where it is a language model.

    It draws with its log-probabilities, in one pass and without running the program's potential.
    """
    if not isinstance(prior, ProgramPrior):
        return prior
    site = prior.site()
    if not isinstance(site, Continuations):
        return prior
    # A program of several latent sites draws a dict.
    drawn, _ = draw(prior, 1, torch.Generator().manual_seed(0))
    return prior if isinstance(drawn, dict) else site


def _select(choice: Tensor, drawn: Sequence[Tensor]) -> Tensor:
    out = drawn[0]
    chosen = choice.to(out.device).reshape(*choice.shape, *(1,) * (out.ndim - choice.ndim))
    for i in range(1, len(drawn)):
        out = torch.where(chosen == i, drawn[i], out)
    return out


def _parts(outcomes: Any) -> list[Any]:
    if isinstance(outcomes, dict):
        split = {site: x.split(CHUNK) for site, x in outcomes.items()}
        return [dict(zip(split, part, strict=True)) for part in zip(*split.values(), strict=True)]
    return list(outcomes.split(CHUNK))


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {site: torch.cat([p[site] for p in parts]) for site in parts[0]}
    return torch.cat([*parts])
