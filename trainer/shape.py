"""The sizes of a network of LLaMA's kind, and how many weights they make. Light: the laptop plans with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder of LLaMA's kind: attention, gated MLP, two norms a layer, no biases."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False
    """Whether input and output embeddings are one matrix."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From the fields of a Hugging Face config.json.

        Raises:
            ConfigError: a field is missing: the family is shaped otherwise.
        """
        try:
            heads = int(config["num_attention_heads"])
            hidden = int(config["hidden_size"])
            return cls(
                hidden,
                int(config["intermediate_size"]),
                int(config["num_hidden_layers"]),
                heads,
                int(config.get("num_key_value_heads") or heads),
                int(config.get("head_dim") or hidden // heads),
                int(config["vocab_size"]),
                bool(config.get("tie_word_embeddings", False)),
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"the model's config.json has no {error}: its memory is not estimated"
            ) from None

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the linear layers of one decoder layer."""
        wide, narrow = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        return {
            "q_proj": (self.hidden, wide),
            "k_proj": (self.hidden, narrow),
            "v_proj": (self.hidden, narrow),
            "o_proj": (wide, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def linear(self) -> int:
        """Weights of the linear layers of one decoder layer."""
        return sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def layer(self) -> int:
        return self.linear + 2 * self.hidden

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def root(self) -> int:
        """Weights outside the decoder layers, gathered together: both embeddings and the last norm."""
        return self.embedding * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + self.root


def head_dim(config: Mapping[str, Any]) -> int | None:
    """Numbers of an attention head, from the fields of a config.json; None where the family has no such thing."""
    if config.get("head_dim"):
        return int(config["head_dim"])
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return int(hidden) // int(heads) if hidden and heads else None


# Touvron et al. 2023, table 2, and the config.json of yahma/llama-7b-hf and -13b-hf.
LLAMA_7B = Shape(4096, 11008, 32, 32, 32, 128, 32000)
LLAMA_13B = Shape(5120, 13824, 40, 40, 40, 128, 32000)
