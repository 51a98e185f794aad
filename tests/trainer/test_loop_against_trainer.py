"""The numbers of a run are those of the plainest loop one can write with transformers and PyTorch.

The reference pads every conversation, passes an attention mask and labels of -100, lets the model compute its own
loss over the global batch (Trainer's meaning of num_items_in_batch), and steps torch.optim.AdamW under
transformers' schedule. Only which conversations a step sees is taken from ours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from tests.trainer.killing import Death, live
from tests.trainer.runs import create_run, write_corpus
from trainer.artifacts.metrics import read_metrics
from trainer.artifacts.store import open_store
from trainer.config import TrainConfig
from trainer.dataset import TokenisedCorpus
from trainer.model import model_config
from trainer.packing import first_fit_decreasing, one_per_row
from trainer.sampler import Sampler

STEPS = 10
IGNORED = -100

torch.set_num_threads(1)


def padded(corpus: TokenisedCorpus, numbers: list[int]) -> dict[str, Tensor]:
    """A batch as FastChat's collator makes it: input_ids, attention_mask and labels, each (n, longest)."""
    width = max(int(corpus.lengths[number]) for number in numbers)
    shape = (len(numbers), width)
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.int64),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.full(shape, IGNORED),
    }
    for row, number in enumerate(numbers):
        ids, flags = (torch.from_numpy(part.astype(np.int64)) for part in corpus.tokens_of(number))
        batch["input_ids"][row, : len(ids)] = ids
        batch["attention_mask"][row, : len(ids)] = 1
        batch["labels"][row, : len(ids)] = torch.where(flags == 1, ids, IGNORED)
    return batch


def loss_of(model: PreTrainedModel, corpus: TokenisedCorpus, numbers: list[int]) -> Tensor:
    batch = padded(corpus, numbers)
    count = int((batch["labels"] != IGNORED).sum())
    return model(**batch, num_items_in_batch=count, use_cache=False).loss


def reference(
    config: TrainConfig,
    corpus: TokenisedCorpus,
    held_out: TokenisedCorpus,
    tokeniser: PreTrainedTokenizerFast,
) -> tuple[list[tuple[float, float, float]], list[float]]:
    """Loss, gradient norm and rate of each step, and the held-out loss before the first and after the last."""
    train = config.train
    torch.manual_seed(train.seed)
    model = AutoModelForCausalLM.from_config(
        model_config(config, tokeniser, None), attn_implementation="sdpa"
    )
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=train.learning_rate, betas=(0.9, 0.999), weight_decay=train.weight_decay
    )
    schedule = get_cosine_schedule_with_warmup(optimiser, 1, STEPS)
    length = config.data.max_length
    rows = first_fit_decreasing(corpus.lengths, length) if config.data.packing else one_per_row(len(corpus))
    sampler = Sampler(corpus.lengths, rows, train.global_batch_size, train.seed)
    everything = list(range(min(train.max_eval_samples, len(held_out))))
    curve, evaluations = [], [loss_of(model.eval(), held_out, everything).item()]
    for step in range(STEPS):
        seen = [int(number) for row in sampler.batch(step) for number in row]
        loss = loss_of(model.train(), corpus, seen)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
        curve.append((loss.item(), norm.item(), schedule.get_last_lr()[0]))
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    return curve, [*evaluations, loss_of(model.eval(), held_out, everything).item()]


@pytest.mark.parametrize("packing", [False, True], ids=["unpacked", "packed"])
def test_ten_steps_are_those_of_a_plain_loop(tmp_path: Path, packing: bool) -> None:
    run, box = str(tmp_path / "runs/compared"), tmp_path / "box"
    corpus = write_corpus(tmp_path / "train.jsonl", 60)
    held_out = write_corpus(tmp_path / "held-out.jsonl", 10, seed=1)
    config = create_run(
        run, corpus, held_out, data__packing=packing, model__dropout=0.0, train__max_steps=STEPS,
        train__global_batch_size=4, train__per_device_train_batch_size=3, train__eval_steps=1000,
        checkpoint__save_steps=1000, train__weight_decay=0.1,
    )  # fmt: skip
    live(run, box, Death("never"))
    steps, evaluations = read_metrics(open_store(run))
    box = next(box.glob("*-e*"))
    tokeniser = PreTrainedTokenizerFast.from_pretrained(box / "inputs/tokeniser")
    inputs = (TokenisedCorpus(box / "inputs" / part) for part in ("train", "held-out"))
    curve, losses = reference(config, *inputs, tokeniser)
    assert [step.loss for step in steps] == pytest.approx([loss for loss, _, _ in curve], rel=1e-5)
    assert [step.grad_norm for step in steps] == pytest.approx([norm for _, norm, _ in curve], rel=1e-4)
    assert [step.learning_rate for step in steps] == pytest.approx([rate for _, _, rate in curve], rel=1e-12)
    assert [evaluation.loss for evaluation in evaluations] == pytest.approx(losses, rel=1e-5)
    assert [evaluation.step for evaluation in evaluations] == [0, STEPS]
