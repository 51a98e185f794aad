"""A transformers model that computes one row of many sequences at a time.

The model's own forward pass, with two things exchanged: attention (attention.py), and the rows of adapters
(adapters.py). Whether a family's forward pass bears that is not believed but tried, when it is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from serving.engines import attention
from serving.engines.attention import Piece, Row
from serving.engines.cache import KeyValues
from trainer.errors import ConfigError

# How far logits may be from transformers' own, by the largest of them: rounding, not another formula.
_ROUNDING = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}


class Network:
    """The model of an engine. Only one thread may use it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model.eval()
        self.dtype: torch.dtype = model.dtype
        self._hidden: Tensor | None = None
        model.get_decoder().register_forward_hook(self._remember)
        self._name = attention.register()

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def vocabulary(self) -> int:
        """Token ids go from 0 to one less."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @torch.inference_mode()
    def step(self, parts: Sequence[tuple[KeyValues, Sequence[int]]], wanted: Sequence[int]) -> Tensor:
        """Compute the next tokens of some sequences.

        Args:
            parts: each sequence's keys and values, with room for its new tokens, and these.
            wanted: of which parts the logits after the last token are wanted.

        Returns:
            (len(wanted), vocabulary) in the model's dtype. The sequences' lengths have grown.
        """
        pieces: list[Piece] = []
        ids: list[int] = []
        positions: list[int] = []
        for kv, tokens in parts:
            pieces.append(Piece(kv, kv.length, len(ids), len(ids) + len(tokens)))
            ids.extend(tokens)
            positions.extend(range(kv.length, kv.length + len(tokens)))
        rows = [pieces[part].last - 1 for part in wanted] or [0]
        device = self.device
        out = self.model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            logits_to_keep=torch.tensor(rows, device=device),
            row=Row(pieces),
        )
        for piece in pieces:
            piece.kv.length += piece.last - piece.first
        logits: Tensor = out.logits[0, : len(wanted)]
        return logits

    def hidden(self) -> Tensor:
        """(T, hidden size) of the last step, in the order of its parts: after the last norm."""
        assert self._hidden is not None
        return self._hidden[0]

    def prove(self) -> None:
        """Try that sequences in pieces, side by side, get the logits that transformers gives each alone.

        Costs three passes over a dozen tokens. Leaves the model with our attention.

        Raises:
            ConfigError: they do not, so this engine cannot serve the model.
        """
        long, short = ([(3 + 7 * i * step) % self.vocabulary for i in range(1, 10)] for step in (1, 5))
        with torch.inference_mode():
            self.model.set_attn_implementation("eager")
            alone = [
                self.model(torch.tensor([ids], device=self.device), use_cache=False).logits[0, -1]
                for ids in (long, short[:4])
            ]
        self.model.set_attn_implementation(self._name)
        try:
            ours = self._in_pieces(long, short[:4])
        # Whatever a model may raise that calls attention in another way than we know.
        except (NotImplementedError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise self._refusal(f"{type(error).__name__}: {error}") from None
        largest = max(float(logits.abs().max()) for logits in alone)
        apart = max(
            float((mine.float() - theirs.float()).abs().max())
            for mine, theirs in zip(ours, alone, strict=True)
        )
        if not apart <= self._rounding() * largest:
            raise self._refusal(f"its logits differ by {apart:.2g} of {largest:.2g} from transformers' own")

    def _in_pieces(self, long: list[int], short: list[int]) -> tuple[Tensor, Tensor]:
        one, other = KeyValues(), KeyValues()
        one.capacity = other.capacity = len(long)
        self.step([(one, long[:5])], [])
        self.step([(other, short[:3]), (one, long[5:8])], [])
        both = self.step([(one, long[8:]), (other, short[3:])], [0, 1])
        return both[0], both[1]

    def _rounding(self) -> float:
        quantised = getattr(self.model, "quantization_method", None) is not None
        return 0.2 if quantised else _ROUNDING.get(self.dtype, 0.1)

    def _refusal(self, reason: str) -> ConfigError:
        return ConfigError(
            f"the hf engine cannot serve {type(self.model).__name__}: {' '.join(reason.split())}",
            hint="serve it with --engine vllm",
        )

    def _remember(self, _module: Any, _args: Any, output: Any) -> None:
        self._hidden = output[0] if isinstance(output, tuple) else output.last_hidden_state
