"""FastChat's `preprocess`, its own source, on a file; run by tests/benchmarks/preprocess.py in FastChat's environment.

    python preprocess_fastchat.py DATA.json TOKENISER slow|fast COUNT SITE_PACKAGES

Prints one JSON line: CPU seconds from the file to the tensors, and for each sample the texts that it would train on.
The environment has no torch; SITE_PACKAGES, which has one, is put behind its own packages.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def stretches(ids: list[int], labels: list[int], ignored: int) -> list[list[int]]:
    """Neighbouring labels that are not ignored."""
    found: list[list[int]] = []
    before = ignored
    for token, label in zip(ids, labels, strict=True):
        if label != ignored and before == ignored:
            found.append([])
        if label != ignored:
            found[-1].append(token)
        before = label
    return found


def main() -> None:
    data, tokeniser, kind, count, site_packages = sys.argv[1:]
    sys.path.append(site_packages)
    import torch
    from fastchat.train import train as theirs
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    loaded: Any = AutoTokenizer.from_pretrained(
        tokeniser, use_fast=kind == "fast", model_max_length=2048, padding_side="right"
    )
    loaded.pad_token = loaded.unk_token  # as train.py does
    began = time.process_time()
    with open(data) as file:
        samples = json.load(file)[: int(count)]
    made = theirs.preprocess([sample["conversations"] for sample in samples], loaded)
    spent = time.process_time() - began
    told: dict[str, Any] = {
        "cpu_s": spent,
        "samples": len(samples),
        "transformers": theirs.transformers.__version__,
    }
    told["ignored"] = int((made["labels"] == theirs.IGNORE_TOKEN_ID).all(1).sum())
    if len(samples) <= 1000:
        rows = zip(made["input_ids"].tolist(), made["labels"].tolist(), strict=True)
        told["learnt"] = [
            [loaded.decode(part) for part in stretches(ids, labels, theirs.IGNORE_TOKEN_ID)]
            for ids, labels in rows
        ]
    print(json.dumps(told))


if __name__ == "__main__":
    main()
