"""`vlaunch data`: from raw chat logs to a training set, as one pipeline or step by step, and a look at what it holds.

steps.py     prepare merge clean filter split dedupe convert: all the same pass, with other steps switched on
pieces.py    sample split-train-test example: which conversations, not what is in them
looks.py     stats inspect: for people
progress.py  the bar on stderr
"""

from __future__ import annotations

from launcher.commands.data.looks import inspect, stats
from launcher.commands.data.pieces import example, sample, split_train_test
from launcher.commands.data.steps import STEPS
from launcher.options import verb_group


@verb_group(
    "data",
    examples=(
        "vlaunch data prepare raw/*.json --to train.jsonl     # the whole pipeline, on all cores",
        "vlaunch data example --to corpus                     # a corpus to try, made on this machine",
        "vlaunch data stats train.jsonl",
    ),
)
def command() -> None:
    """Make and look at training conversations.

    A corpus is ShareGPT, OpenAI messages or Alpaca: .json, .jsonl or .parquet, plain, .gz or .zst. What it is, is
    found out and said. Text is never changed by a step that is not asked for.
    """


for part in (*STEPS, sample, split_train_test, stats, inspect, example):
    command.add_command(part)
