"""What a configuration says about lengths: where a network changes with the length of a sequence.

Three kinds of numbers, in tokens. At a *switch* (rope type "longrope") every position of a sequence
changes once it is longer: an outcome that crosses it has no one probability, since its first tokens
were drawn by another network than its last. Beyond the *end* (rope type "dynamic") each length is a
network of its own. At a *mark* (a window, a chunk) the network goes on by another path, which a
check of short rows does not see. None of these is a fault; assuming that there is none would be.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

STATIC = frozenset({"default", "linear", "yarn", "llama3", "proportional", "mrope"})
"""Rope types whose frequencies are fixed when the network is made."""


@dataclass(frozen=True)
class LengthRules:
    """Lengths in tokens at which a network changes."""

    switches: tuple[int, ...] = ()
    end: int | None = None
    marks: tuple[int, ...] = ()

    def side(self, prompt: int, new: int, who: str) -> int:
        """Number of switches that a sequence lies beyond, all its tokens alike.

        Parameters
        ----------
        prompt : int
            Tokens of the prompt.
        new : int
            Largest number of new tokens. The last of them is never read.
        who : str
            Name of the network, for the message.

        Raises
        ------
        ValueError
            If the sequence crosses a switch, or the end.
        """
        read = prompt + new - 1
        if self.end is not None and read > self.end:
            raise ValueError(
                f"a prompt of {prompt} tokens and {new} new ones go beyond {self.end} tokens, "
                f"where {who} (rope type 'dynamic') becomes another network with every token: the "
                "probabilities of an outcome would not be those of one law; give prompts of at "
                f"most {max(self.end - new + 1, 0)} tokens, or lower max_new_tokens"
            )
        for switch in self.switches:
            if prompt <= switch < read:
                raise ValueError(
                    f"a prompt of {prompt} tokens and {new} new ones cross {switch} tokens, where "
                    f"{who} (original_max_position_embeddings) changes all its positions: an "
                    "outcome's first tokens would be of another network than its last; give "
                    f"prompts of at most {max(switch - new + 1, 0)} or of more than {switch} "
                    "tokens, or lower max_new_tokens"
                )
        return sum(switch < prompt for switch in self.switches)

    def around(self, side: int) -> tuple[int, int | None]:
        """The lengths of one side: above the first number, up to the second."""
        low = self.switches[side - 1] if side else 0
        high = self.switches[side] if side < len(self.switches) else self.end
        return low, high


def read(config: Any) -> LengthRules:
    """The rules of a configuration.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the text part.
    """
    switches: set[int] = set()
    end = None
    for parameters in _ropes(config):
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        original = parameters.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        if "dynamic" in kind:
            end = getattr(config, "max_position_embeddings", None)
        elif kind not in STATIC and original:
            switches.add(int(original))
    marks = {n for n in _marks(config.to_dict()) if n not in switches}
    return LengthRules(tuple(sorted(switches)), end, tuple(sorted(marks)))


def _ropes(config: Any) -> Iterator[Mapping[str, Any]]:
    """Parameters of the rotary embeddings: one set, or one for each kind of layer."""
    stated = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    parts = [p for p in stated.values() if isinstance(p, Mapping)]
    yield from parts or [stated]


def _marks(fields: Mapping[str, Any]) -> Iterator[int]:
    """Sizes of windows and chunks of tokens, whatever their names."""
    for name, value in fields.items():
        named = any(part in name for part in ("window", "chunk", "index_topk", "original_max"))
        other = any(part in name for part in ("layers", "feed_forward", "vision", "audio"))
        if named and not other and type(value) is int and value > 1:
            yield value
