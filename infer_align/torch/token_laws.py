r"""Two language models token by token: log-probabilities, and KLs over the whole vocabulary.

On each prefix of an outcome the next-token laws of policy and prior are compared in full,

.. math:: KL_t = \sum_v π(v|y_{<t}) \log\frac{π(v|y_{<t})}{ρ(v|y_{<t})}, \qquad
          E_π\Big[ \sum_{t \le |y|} KL_t \Big] = KL(π‖ρ),

the Rao–Blackwellised estimate of KL(π‖ρ): the mean of Σ_t KL_t is that of log π(y) − log ρ(y), its
variance is smaller, and no term is negative (Amini, Vieira, Cotterell 2025, arXiv 2504.10637).
"""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from infer_align.torch import scoring
from infer_align.torch.continuations import Continuations

__all__ = ["PerToken", "per_token"]


class PerToken(NamedTuple):
    r"""Numbers of each token of some outcomes, (n, \*contexts, T), in nats; 0 after the EOS."""

    log_policy: Tensor
    """log π of the token."""
    log_prior: Tensor
    """log ρ of the token."""
    kl: Tensor
    """KL(π‖ρ) of the next-token laws on the prefix before the token."""
    entropy: Tensor
    """Entropy of π's next-token law there."""
    entropy_prior: Tensor
    """Entropy of ρ's next-token law there."""
    lengths: Tensor
    r"""Tokens of each outcome, its EOS included: (n, \*contexts)."""


@torch.no_grad()
def per_token(
    policy: Continuations, prior: Continuations, value: Int[Tensor, "*n_contexts T"]
) -> PerToken:
    r"""Compare two language models on every prefix of some outcomes.

    Parameters
    ----------
    policy, prior : Continuations
        ``policy(prompts)`` and ``prior(prompts)`` of the same prompts and vocabulary.
    value : int tensor (n, \*contexts, T)
        Outcomes: draws of the policy for its KL, or all that there are.

    Returns
    -------
    PerToken
        Float64 on the CPU. `infer_align.diagnostics.by_position` averages its fields.

    Raises
    ------
    ValueError
        If prompts, vocabularies or lengths of the two differ.

    Examples
    --------
    >>> import torch
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from infer_align.torch import CausalLM, per_token
    >>> config = GPT2Config(vocab_size=5, n_embd=8, n_layer=1, n_head=2, n_positions=8,
    ...                     bos_token_id=0, eos_token_id=4)
    >>> lm = CausalLM(GPT2LMHeadModel(config), None, max_new_tokens=4)
    >>> tokens = per_token(lm(), lm(), lm().sample((6,)))
    >>> tuple(tokens.kl.shape), float(tokens.kl.abs().max()) < 1e-6
    ((6, 4), True)
    """
    _check(policy, prior)
    tokens, index, shape = policy._rows(value)
    order: list[Tensor] = []
    parts: list[Tensor] = []
    budget = max(1, policy.network.token_budget // 2)  # the logits of both are held at once
    network = policy.network
    for rows in scoring.micro_batches(
        network, policy.prompts, index, tokens, budget, beside=prior.network
    ):
        order.append(rows)
        given = index[rows], tokens[rows]
        logits, ids, where, used = scoring.predictions(network, policy.prompts, *given)
        others = scoring.predictions(prior.network, prior.prompts, *given)[0]
        parts.append(_compare(logits, others, ids, where, used))
    places = torch.argsort(torch.cat(order)).cpu()
    if bool(torch.stack([part.isnan().any() for part in parts]).any()):
        raise FloatingPointError(scoring.NOT_FINITE.format("comparing two models"))
    columns = torch.cat(parts, dim=1)[:, places].reshape(-1, *shape, tokens.shape[-1])
    return PerToken(
        log_policy=columns[0], log_prior=columns[1], kl=columns[2], entropy=columns[3],
        entropy_prior=columns[4], lengths=policy.lengths(value).cpu().expand(shape),
    )  # fmt: skip


def _compare(
    logits: Tensor, prior_logits: Tensor, ids: Tensor, where: Tensor, used: Tensor
) -> Tensor:
    """The five numbers of each token, (5, rows, T); row by row, since a vocabulary is large."""
    parts = []
    for i in range(len(logits)):
        log_pi = logits[i].double().log_softmax(-1)
        log_rho = prior_logits[i].double().log_softmax(-1)
        pi, rho = log_pi.exp(), log_rho.exp()
        chosen = ids[i][:, None]
        columns = torch.stack(
            [
                log_pi.gather(1, chosen)[:, 0],
                log_rho.gather(1, chosen)[:, 0],
                torch.where(pi > 0, pi * (log_pi - log_rho), 0.0).sum(-1),
                -torch.where(pi > 0, pi * log_pi, 0.0).sum(-1),
                -torch.where(rho > 0, rho * log_rho, 0.0).sum(-1),
            ]
        )
        parts.append(torch.where(used[i], columns[:, where[i]], 0.0))
    return torch.stack(parts, dim=1).cpu()


def _check(policy: Continuations, prior: Continuations) -> None:
    """Refuse two laws that are not over the same outcomes of the same prompts."""
    sizes = [(law.network.vocab_size, law.max_new_tokens) for law in (policy, prior)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            "policy and prior must share a vocabulary and a length; their (vocabulary size, "
            f"max_new_tokens) are {sizes[0]} and {sizes[1]}: compare models of one tokenizer"
        )
    asked = [
        [list(law.prompts[i]) for i in law._index.reshape(-1).tolist()] for law in (policy, prior)
    ]
    if asked[0] != asked[1]:
        raise ValueError("policy and prior continue other prompts; call both with the same ones")
