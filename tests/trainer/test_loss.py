"""The loss of the trainer is torch's cross-entropy, in a third of its memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from trainer.loss import summed_cross_entropy


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 40])
def test_it_is_the_cross_entropy_of_torch_whatever_the_parts(rows: int) -> None:
    torch.manual_seed(rows)
    logits = (20 * torch.randn(rows, 50)).requires_grad_()
    targets = torch.randint(0, 50, (rows,))
    theirs = cross_entropy(logits, targets, reduction="sum") / 3
    (wanted,) = torch.autograd.grad(theirs, logits)
    ours = summed_cross_entropy(logits * 1.0, targets, part=8 * 50) / 3
    (found,) = torch.autograd.grad(ours, logits)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found, wanted)


def test_numbers_of_16_bit_are_summed_in_32() -> None:
    torch.manual_seed(0)
    logits = torch.randn(64, 1000, dtype=torch.bfloat16).requires_grad_()
    targets = torch.randint(0, 1000, (64,))
    theirs = cross_entropy(logits.float(), targets, reduction="sum")
    (wanted,) = torch.autograd.grad(theirs, logits)
    ours = summed_cross_entropy(logits * 1.0, targets)
    (found,) = torch.autograd.grad(ours, logits)
    assert ours.dtype == torch.float32 and found.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found, wanted)


def test_one_who_looks_at_the_overwritten_logits_again_is_told() -> None:
    logits = torch.randn(4, 10).requires_grad_()
    used = logits.exp()  # keeps its result for its own gradient
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (summed_cross_entropy(used, torch.zeros(4, dtype=torch.int64)) + 0 * used.sum()).backward()
