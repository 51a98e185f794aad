"""The quickstart's model really learns: its own recipe and corpus, a quarter of its steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.killing import Death, live
from trainer.artifacts.layout import CONFIG
from trainer.artifacts.manifest import put_blob
from trainer.artifacts.metrics import read_metrics
from trainer.artifacts.store import open_store
from trainer.config import StoredFile, override, parse_config
from trainer.data.example import write_example
from trainer.recipes import get_recipe

STEPS = 120


@pytest.mark.slow
def test_the_held_out_loss_of_the_example_corpus_falls_by_more_than_a_third(tmp_path: Path) -> None:
    """Costs half a minute of one core: nothing shorter shows that the recipe learns and not just runs."""
    run = str(tmp_path / "runs/learner")
    store = open_store(run)
    tree = get_recipe("tiny").config.model_dump(mode="json")
    for part, path in zip(("train", "eval"), write_example(tmp_path / "example"), strict=True):
        entry = put_blob(store, path)
        tree["data"][part] = [StoredFile(name=path.name, blob=entry.blob, size=entry.size).model_dump()]
    settings = [
        ("max_steps", str(STEPS)),
        ("lr_scheduler_type", "constant"),
        ("eval_strategy", "no"),
        ("max_new_tokens", "0"),
        ("threads", "1"),
    ]
    config, _ = override(parse_config(tree), [*settings, ("max_eval_samples", "64")])
    store.put_new(CONFIG, config.encode())

    assert not live(run, tmp_path / "work", Death("never"))

    first, last = read_metrics(store)[1]
    assert (first.step, last.step) == (0, STEPS)
    assert last.loss < first.loss * 2 / 3
