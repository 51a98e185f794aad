"""The box program finds how many rows a pass holds, keeps the number, and says in one message what does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.trainer.boxes import REPOSITORY, run_box
from tests.trainer.runs import create_run, write_corpus
from trainer.artifacts.journal import read_journal
from trainer.artifacts.metrics import read_metrics
from trainer.artifacts.store import open_store


def test_a_run_finds_its_rows_and_computes_what_it_computes_with_any_number(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", count=60)
    losses = {}
    for name, auto in (("found", True), ("fixed", False)):
        run = str(tmp_path / "runs" / name)
        create_run(
            run,
            corpus,
            train__auto_batch=auto,
            train__max_steps=3,
            train__global_batch_size=12,
            model__dropout=0.0,
            parallel__processes=2,
        )
        done = run_box(run, tmp_path / f"box-{name}")
        assert done.returncode == 0, done.stderr
        losses[name] = [step.loss for step in read_metrics(open_store(run))[0]]
        kept = [json.loads(path.read_text()) for path in Path(run).glob("cache/rows-*.json")]
        assert [entry["rows"] for entry in kept] == ([6] if auto else [])
    for one, other in zip(losses["found"], losses["fixed"], strict=True):
        assert abs(one - other) < 1e-5


LIMITED = """
import resource, runpy, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
runpy.run_module("trainer", run_name="__main__", alter_sys=True)
"""


def test_a_run_that_does_not_fit_ends_with_one_message_and_what_would(tmp_path: Path) -> None:
    """200 million weights take 3.2 GB and what comes with them; the limit is 5 GiB of addresses."""
    shape = {
        "model_type": "llama",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    }
    run = str(tmp_path / "runs" / "large")
    corpus = write_corpus(tmp_path / "corpus.jsonl", count=30)
    create_run(run, corpus, model__shape=shape, train__max_steps=2)
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(5 << 30), "--run", run, "--workdir", str(tmp_path / "box")],
        env=environment | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    (failed,) = [event.data for event in read_journal(open_store(run)) if event.kind == "failed"]
    assert failed["error"].startswith("out of memory ")
    assert "the estimate was" in failed["error"] and "optimiser: AdamW's moments" in failed["error"]
    assert failed["hint"].startswith("each of these three would fit")
