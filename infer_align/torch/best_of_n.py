"""`BestOfN`: the best of n draws as a Pyro distribution, for a sample site."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from infer_align import _supports, _ties
from infer_align._numerics import as_real, own
from infer_align.exact._cdf import cdf_of_support
from infer_align.targets import add_potential, best_of_draws, check_draws, tolerance_of

__all__ = ["BestOfN"]


class BestOfN(TorchDistribution):
    r"""Draw n outcomes of the base and keep one of the best, ties broken at random.

    .. math:: \log π(y) = \log \mathrm{base}(y) + \log\frac{F(r)^n - F(r^-)^n}{P(r)}

    Beirami et al. 2024 (arXiv 2401.01879). With a temperature one of the n is kept in proportion to
    exp(reward/temperature): soft best-of-n, Verdun et al. 2025 (arXiv 2505.03156). The base may be
    the continuations of a language model: ``BestOfN(lm(prompts), reward, 4, cdf,
    contexts=(prompts,))`` with a reward ``(y, prompts)``.

    Parameters
    ----------
    base : TorchDistribution
        Its batch shape is that of the contexts.
    reward : callable
        ``(y, *contexts) -> (m, *batch)`` of outcomes y of shape (m, \*batch, ...); ``-inf`` is the
        worst of all.
    n : int
        >= 1.
    cdf : RewardCdf, or callable, optional
        Of the reward under the base; a callable gets the contexts. By default it is summed over the
        base's support, at every ``log_prob``. With an estimated cdf ``log_prob`` is an estimate.
    contexts : tuple, optional
        Further arguments of the reward.
    temperature : float, optional
        > 0, in units of the reward.

    Raises
    ------
    ValueError
        Unless n is a whole number >= 1; from ``log_prob``, for a base whose outcomes cannot be
        listed, without a cdf.

    Examples
    --------
    >>> import torch
    >>> from pyro.distributions import Categorical
    >>> from infer_align.torch import BestOfN
    >>> best = BestOfN(Categorical(torch.tensor([0.5, 0.3, 0.2])), lambda y: 1.0 * y, 2)
    >>> [round(float(p), 4) for p in best.log_prob(torch.arange(3)).exp()]
    [0.25, 0.39, 0.36]
    >>> tuple(best.sample((4,)).shape)
    (4,)
    """

    arg_constraints: ClassVar[dict] = {}
    has_rsample = False

    def __init__(
        self,
        base: Any,
        reward: Callable[..., Tensor],
        n: int | float,
        cdf: Any = None,
        *,
        contexts: tuple[Any, ...] = (),
        temperature: float | int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        check_draws(n, temperature)
        self.base, self.reward, self.n, self.reward_cdf = base, reward, int(n), cdf
        self.contexts, self.temperature = contexts, temperature
        self._of_contexts = base
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        """Whether the base lists its support."""
        return self.base.has_enumerate_support

    @property
    def support(self) -> Any:
        """That of the base."""
        return self.base.support

    def enumerate_support(self, expand: bool = True) -> Tensor:  # noqa: FBT001, FBT002
        """The base's support."""
        return self.base.enumerate_support(expand=expand)

    def expand(self, batch_shape: Sequence[int], _instance: "BestOfN | None" = None) -> "BestOfN":
        """Repeat over new leading axes, whose outcomes are of the same contexts."""
        wider = BestOfN(
            self.base.expand(torch.Size(batch_shape)), self.reward, self.n, self.reward_cdf,
            contexts=self.contexts, temperature=self.temperature,
        )  # fmt: skip
        wider._of_contexts = self._of_contexts
        return wider

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Outcomes of shape (*sample_shape, *batch, ...), each of n draws of the base.

        Parameters
        ----------
        sample_shape : sequence of int
        """
        size = torch.Size([self.n, *sample_shape])
        drawn = self.base.sample(size)
        rewards = self._rewards(drawn)
        noise = -torch.log(torch.empty_like(rewards).exponential_())
        top = rewards.amax(dim=0)
        if self.temperature is None:
            score = torch.where(self._tied(rewards), noise, -math.inf)
        else:
            some = top > -math.inf
            log_weight = (rewards - torch.where(some, top, 0.0)) / self.temperature
            score = noise + torch.where(some, log_weight, 0.0)
        kept = score.argmax(dim=0)
        index = kept.reshape(1, *kept.shape, *(1,) * len(self.event_shape))
        index = index.expand(1, *drawn.shape[1:]).to(drawn.device)
        return torch.gather(drawn, 0, index)[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """Normalised log-probability, shape (*sample_shape, *batch).

        Parameters
        ----------
        value : tensor, shape (*sample_shape, *batch, ...)
        """
        leading = torch.broadcast_shapes(
            value.shape[: value.ndim - len(self.event_shape)], self.batch_shape
        )
        value = value.expand(leading + self.event_shape)
        log_prior = _supports.log_prob(self.base, value)
        potential = self._potential(self._rows(value)).reshape(leading)
        return add_potential(log_prior, potential.to(log_prior.device), "BestOfN")

    def _potential(self, rows: Tensor) -> Tensor:
        cdf: Any = self.reward_cdf if self.reward_cdf is not None else self._listed()
        target = best_of_draws(self.base, self.reward, self.n, cdf, self.temperature)
        return target.log_potential(rows, *self.contexts)

    def _listed(self) -> Any:
        return cdf_of_support(self._of_contexts, self.reward, *self.contexts)

    def _rows(self, value: Tensor) -> Tensor:
        """Outcomes (m, *contexts, ...): all other leading axes as one."""
        return value.reshape(-1, *self._of_contexts.batch_shape, *self.event_shape)

    def _tied(self, rewards: Tensor) -> Tensor:
        """Which of the n draws on axis 0 are the best."""
        draws = rewards.ndim - len(self._of_contexts.batch_shape)
        return _ties.best(rewards, draws, tolerance_of(self.reward_cdf, self.contexts))

    def _rewards(self, y: Tensor) -> Tensor:
        rows = self._rows(y)
        rewards = torch.as_tensor(self.reward(own(rows), *self.contexts))
        as_real(rewards, "the reward")
        wanted = rows.shape[: rows.ndim - len(self.event_shape)]
        if rewards.shape != wanted:
            raise ValueError(
                f"the reward of outcomes of shape {tuple(rows.shape)} has shape "
                f"{tuple(rewards.shape)}; needed is one number an outcome, {tuple(wanted)}: sum "
                "over the token axis with .sum(-1)"
            )
        rewards = rewards if rewards.is_floating_point() else rewards.double()
        return rewards.reshape(y.shape[: y.ndim - len(self.event_shape)])
