r"""The distribution of a language model's continuations of some prompts.

An outcome is a sequence :math:`y` of at most T tokens that ends at its first EOS,

.. math:: \log p(y \mid x) = \sum_{t \le |y|} \log p(y_t \mid x, y_{<t}),

EOS included; a sequence cut at T is an outcome too, so that the probabilities of all outcomes
sum to one. A value is an integer tensor with T entries; those after the first EOS are padding
and carry no probability, whatever they hold.

Shape law: with P prompts ``batch_shape`` is ``(P,)``, with ``None`` it is ``()``;
``event_shape`` is ``(T,)``. A batch of n outcomes per prompt has shape ``(n, P, T)`` and its
log-probabilities have shape ``(n, P)``.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from infer_align.spaces import SequenceModel
from infer_align.torch import sampling, scoring
from infer_align.torch.networks import Network


class Continuations(TorchDistribution):
    r"""Continuations of prompts under a causal language model, as a Pyro distribution.

    Parameters
    ----------
    network : Network
        The model, made by `CausalLM`.
    prompts : list of token-id lists
        The contexts, none empty.
    index : int tensor (\*contexts)
        Which prompt stands at each place of ``batch_shape``.
    max_new_tokens : int
        T, the longest outcome.

    Raises
    ------
    ValueError
        From ``log_prob`` for a value of the wrong shape or type, or with ids out of range.

    Examples
    --------
    See `CausalLM`, whose call makes one.
    """

    arg_constraints: ClassVar[dict] = {}
    has_rsample = False

    def __init__(
        self,
        network: Network,
        prompts: Sequence[Sequence[int]],
        index: Tensor,
        max_new_tokens: int,
        *,
        validate_args: bool | None = None,
    ):
        self.network = network
        self.prompts = prompts
        self.max_new_tokens = max_new_tokens
        self._index = index
        # Refuses prompts that no one law continues.
        for size in {len(prompts[i]) for i in index.reshape(-1).tolist()}:
            network.side(size, max_new_tokens)
        super().__init__(index.shape, torch.Size([max_new_tokens]), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Token ids, one axis of them an event."""
        return constraints.independent(
            constraints.integer_interval(0, self.network.vocab_size - 1), 1
        )

    def sequence_model(self) -> SequenceModel:
        """All its sequences, for exact solutions of models that small."""
        ends, size = self.network.eos_token_ids, self.network.vocab_size
        tokens = torch.arange(size, device=self.network.device)
        pad = ends[0] if ends else 0
        return SequenceModel(size, self.max_new_tokens, ends, pad, values=tokens)

    def expand(
        self, batch_shape: Sequence[int], _instance: "Continuations | None" = None
    ) -> "Continuations":
        """Repeat the prompts over new leading axes."""
        return Continuations(
            self.network, self.prompts, self._index.expand(batch_shape), self.max_new_tokens
        )

    def sample(self, sample_shape: Sequence[int] = ()) -> Int[Tensor, "*n_contexts T"]:
        r"""Outcomes of shape ``(*sample_shape, *contexts, T)`` from torch's default generator."""
        return self.sample_with_log_prob(sample_shape)[0]

    def sample_with_log_prob(
        self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> tuple[Int[Tensor, "*n_contexts T"], Float[Tensor, "*n_contexts"]]:
        r"""Outcomes and their log-probabilities from one sampling pass, without gradient.

        Parameters
        ----------
        sample_shape : sequence of int
            Outcomes per prompt, usually ``(n,)``.
        generator : torch.Generator, optional
            Source of randomness; equal states give equal outcomes however they are batched.

        Returns
        -------
        value : int tensor (\*sample_shape, \*contexts, T)
            Filled with the first EOS id after an outcome's end.
        log_prob : float tensor (\*sample_shape, \*contexts)
            Nats, EOS included.

        Examples
        --------
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from infer_align.torch.policies import CausalLM
        >>> config = GPT2Config(vocab_size=5, n_embd=8, n_layer=1, n_head=2, n_positions=8,
        ...                     bos_token_id=0, eos_token_id=4)
        >>> lm = CausalLM(GPT2LMHeadModel(config), None, max_new_tokens=4)
        >>> value, log_prob = lm([[1, 2], [3]]).sample_with_log_prob((7,))
        >>> tuple(value.shape), tuple(log_prob.shape)
        ((7, 2, 4), (7, 2))
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        index = self._index.expand(shape).reshape(-1)
        tokens, log_prob = sampling.sample(
            self.network, self.prompts, index, self.max_new_tokens, generator
        )
        return tokens.reshape(shape + self.event_shape), log_prob.reshape(shape)

    def log_prob(self, value: Tensor) -> Float[Tensor, "*n_contexts"]:
        r"""Log-probabilities of whole outcomes, in passes within the token budget.

        Parameters
        ----------
        value : int tensor (n, \*contexts, T)
            Outcomes.

        Returns
        -------
        float tensor (n, \*contexts)
            Nats, EOS included; differentiable where the network's parameters are trainable.
        """
        return self.log_prob_per_token(value).sum(-1)

    def log_prob_per_token(self, value: Tensor) -> Float[Tensor, "*n_contexts T"]:
        r"""Log-probability of each token, of shape ``(n, *contexts, T)``; 0 after the EOS."""
        tokens, index, shape = self._rows(value)
        order, parts = [], []
        for rows in scoring.micro_batches(self.network, self.prompts, index, tokens):
            order.append(rows)
            parts.append(
                scoring.log_prob_per_token(self.network, self.prompts, index[rows], tokens[rows])
            )
        places = torch.argsort(torch.cat(order)).to(parts[0].device)
        return torch.cat(parts)[places].reshape(shape + self.event_shape)

    def micro_batches(self, value: Tensor, token_budget: int | None = None) -> Iterator[Tensor]:
        r"""Partition the rows of ``value`` into forward passes.

        Parameters
        ----------
        value : int tensor (n, \*contexts, T)
            Outcomes.
        token_budget : int, optional
            Largest number of tokens (rows times padded width, prompt included) of one pass;
            the model's own by default. A row longer than that is alone in its pass.

        Yields
        ------
        int tensor (rows,)
            Row numbers in ``value`` flattened to ``(n * contexts, T)``, sorted by length.
        """
        tokens, index, _ = self._rows(value)
        return scoring.micro_batches(self.network, self.prompts, index, tokens, token_budget)

    def log_prob_rows(self, value: Tensor, rows: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        r"""Log-probabilities of some rows of the flattened ``value``, in one forward pass.

        With coefficients c fixed beforehand, the gradients of ``(c[rows] * log_prob_rows)``
        summed over the `micro_batches` are that of the whole batch: nothing else couples rows.

        Parameters
        ----------
        value : int tensor (n, \*contexts, T)
            Outcomes.
        rows : int tensor (rows,)
            Row numbers, from `micro_batches`.

        Returns
        -------
        float tensor (rows,)
            Nats.
        """
        return self.log_prob_per_token_rows(value, rows).sum(-1)

    def log_prob_per_token_rows(
        self, value: Tensor, rows: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows T"]:
        """As `log_prob_rows`, for each token: shape ``(rows, T)``, 0 after the EOS."""
        tokens, index, _ = self._rows(value)
        return scoring.log_prob_per_token(self.network, self.prompts, index[rows], tokens[rows])

    @property
    def sample_score_limit(self) -> float:
        """How far sampled and scored log-probabilities may differ by rounding, in nats.

        Ten times the largest difference met between two orders of the same rows; it grows with
        the square root of the outcomes' length (`Network.rounding`).
        """
        return self.network.rounding * self.max_new_tokens**0.5

    def lengths(self, value: Int[Tensor, "*n_contexts T"]) -> Int[Tensor, "*n_contexts"]:
        """Number of tokens of each outcome, its EOS included."""
        return scoring.lengths(self.network, value)

    def _rows(self, value: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
        """Outcomes as rows, their prompt numbers, and the shape of their log-probabilities."""
        self._check(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        tokens = value.expand(shape + self.event_shape).reshape(-1, self.max_new_tokens).long()
        return tokens, self._index.to(value.device).expand(shape).reshape(-1), shape

    def _check(self, value: Tensor) -> None:
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise ValueError(f"outcomes are integer token ids, got a tensor of {value.dtype}")
        if value.shape[-1:] != self.event_shape:
            raise ValueError(
                f"outcomes have max_new_tokens = {self.max_new_tokens} entries on their last "
                f"axis, got shape {tuple(value.shape)}: pad after the EOS, or make the model "
                "with another max_new_tokens"
            )
        try:
            torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        except RuntimeError:
            raise ValueError(
                f"outcomes of shape {tuple(value.shape)} do not fit the prompts: expected "
                f"(n, {', '.join(map(str, self.batch_shape + self.event_shape))})"
            ) from None
        top = self.network.vocab_size - 1
        if value.numel() and not 0 <= int(value.min()) <= int(value.max()) <= top:
            raise ValueError(
                f"token ids must lie in 0 to {top}, got {int(value.min())} to {int(value.max())}; "
                "padding too: fill with the EOS id"
            )
