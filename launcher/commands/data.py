"""`vlaunch data`: make and look at training conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from launcher import options
from launcher.output import emit, say, table

if TYPE_CHECKING:
    from trainer.data.stats import CorpusStats, FileStats

_BAR_WIDTH = 40


@options.verb_group(
    "data",
    examples=(
        "vlaunch data example --to corpus             # a corpus to try, made on this machine",
        "vlaunch data stats sharegpt.json more.jsonl.gz",
    ),
)
def command() -> None:
    """Make and look at training conversations.

    A corpus is ShareGPT, OpenAI messages or Alpaca: .json, .jsonl or .parquet, plain, .gz or .zst.
    """


@command.command(
    "example",
    examples=("vlaunch data example", "vlaunch data example --to corpus"),
)
@options.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, writable=True),
    default="example-corpus",
    help="Folder for train.jsonl and heldout.jsonl.",
)
@click.pass_context
def example(ctx: click.Context, folder: str) -> None:
    """Write a corpus to try: questions and answers from Python's own documentation.

    Needs no network. The same Python version writes the same bytes every time.
    """
    from trainer.data.example import example_corpus, save_corpus

    train, heldout = example_corpus()
    train_path, heldout_path = save_corpus(folder, train, heldout)
    say(f"{len(train)} conversations to train on, {len(heldout)} held out")
    data = {
        "train": {"path": train_path, "conversations": len(train)},
        "heldout": {"path": heldout_path, "conversations": len(heldout)},
    }
    emit(ctx, data, f"{train_path}\n{heldout_path}\n")


@command.command(
    "stats",
    examples=("vlaunch data stats sharegpt.json", "vlaunch data stats *.jsonl --json | jq .total"),
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@click.pass_context
def stats(ctx: click.Context, files: tuple[str, ...]) -> None:
    """Count conversations, turns and words; show their lengths, and what was refused and why."""
    from trainer.data.read import read_corpus
    from trainer.data.stats import corpus_stats

    counted = corpus_stats(read_corpus(files))
    emit(ctx, _as_dict(counted), lambda: _as_text(counted))


def _as_dict(counted: CorpusStats) -> dict[str, Any]:
    from trainer.data.stats import histogram

    total = {"samples": sum(file.report.samples for file in counted.files), **counted.total.as_dict()}
    return {
        "files": [_file_dict(file) for file in counted.files],
        "total": {**total, "trimmed": counted.trimmed, "refused": counted.refused},
        "histogram": [
            {"low": bucket.low, "high": bucket.high, "conversations": bucket.conversations}
            for bucket in histogram(counted.total.lengths)
        ],
    }


def _file_dict(file: FileStats) -> dict[str, Any]:
    report = file.report
    return {
        "path": report.path,
        "container": report.container,
        "compression": report.compression,
        "forms": report.forms,
        "samples": report.samples,
        **file.counts.as_dict(),
        "trimmed": report.trimmed,
        "refused": report.refused,
        "first_refusal": report.first_refusal,
    }


def _as_text(counted: CorpusStats) -> str:
    from trainer.data.stats import bar, histogram

    columns = ("FILE", "FORMAT", "SAMPLES", "USED", "TURNS", "WORDS", "MEDIAN", "LONGEST", "CHARACTERS")
    rows = [_row(str(file.report.path), file.report.format, file) for file in counted.files]
    if len(rows) > 1:
        samples = sum(file.report.samples for file in counted.files)
        rows.append(("total", "", f"{samples:,}", *_numbers(counted.total.as_dict())))
    text = table(columns, rows, right=columns[2:])
    buckets = histogram(counted.total.lengths)
    most = max((bucket.conversations for bucket in buckets), default=0)
    lengths = [
        (f"{b.low:,}-{b.high:,}", f"{b.conversations:,}", bar(b.conversations, most, _BAR_WIDTH))
        for b in buckets
    ]
    text += "\n" + table(("WORDS", "CONVERSATIONS", ""), lengths, right=("WORDS", "CONVERSATIONS"))
    if counted.trimmed:
        text += f"\n{counted.trimmed:,} conversation(s) lost a last question that has no answer\n"
    refused = [
        (str(file.report.path), reason, f"{count:,}", file.report.first_refusal[reason])
        for file in counted.files
        for reason, count in sorted(file.report.refused.items(), key=lambda item: (-item[1], item[0]))
    ]
    if refused:
        text += "\n" + table(("FILE", "REFUSED BECAUSE", "SAMPLES", "THE FIRST"), refused, right=("SAMPLES",))
    return text


def _row(name: str, form: str, file: FileStats) -> tuple[str, ...]:
    return (name, form, f"{file.report.samples:,}", *_numbers(file.counts.as_dict()))


def _numbers(counts: dict[str, int]) -> tuple[str, ...]:
    keys = ("conversations", "turns", "words", "median_words", "longest_words", "characters")
    return tuple(f"{counts[key]:,}" for key in keys)
