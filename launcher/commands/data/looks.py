"""`vlaunch data stats` and `vlaunch data inspect`: what a corpus holds, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from launcher import options
from launcher.commands.data.steps import template, tokeniser
from launcher.output import colour, emit, say, table

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable
    from pathlib import Path

    from trainer.conversation import Conversation, Segment
    from trainer.data.buckets import Hand
    from trainer.data.stats import Bucket, CorpusStats, FileStats

_BAR_WIDTH = 40


@options.verb(
    "stats",
    examples=(
        "vlaunch data stats sharegpt.json",
        "vlaunch data stats train.jsonl --tokeniser models/llama --png lengths.png",
        "vlaunch data stats *.jsonl --json | jq .total",
    ),
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@template
@options.option(
    "--tokeniser", metavar="PATH", help="Count tokens too, with this tokenizer.json (or its folder)."
)
@options.option("--languages", is_flag=True, help="Find the language of every conversation.")
@options.option("--png", metavar="FILE", help="Write the lengths as a picture.")
@click.pass_context
def stats(
    ctx: click.Context,
    files: tuple[str, ...],
    template: str | None,
    tokeniser: str | None,
    languages: bool,
    png: str | None,
) -> None:
    """Count conversations, turns, words and tokens; show lengths, languages, and what was refused and why.

    For a file that `vlaunch data prepare` wrote, the manifest beside it says what was dropped on the way.
    """
    from launcher.settings import cache_dir
    from trainer.data.buckets import at_hand, job_folder
    from trainer.data.read import read_corpus
    from trainer.data.stats import corpus_stats

    if languages:
        from trainer.data.language import detector

        detector(cache_dir())
    with at_hand(job_folder(cache_dir(), *files)) as hand:
        paths = hand.inputs(files)
        counted = corpus_stats(
            read_corpus(paths), tokens=_token_count(tokeniser, template), languages=languages
        )
        drops = _drops(paths, hand)
        if png:
            from trainer.data.pictures import save_lengths

            picture = hand.output(png)
            save_lengths(counted.total, picture)
            hand.deliver(picture)
            say(f"wrote {png}")
    name = hand.name
    data = {**_as_dict(counted, name), "drops": drops}
    emit(ctx, data, lambda: _as_text(counted, name) + _drops_text(drops))


def _token_count(tokeniser: str | None, template: str | None) -> Callable[[Conversation], int] | None:
    if tokeniser is None:
        return None
    from dataclasses import replace

    from trainer.conversation import get_template
    from trainer.data.buckets import local_path
    from trainer.data.split import SplitSettings, Splitter

    settings = SplitSettings(tokeniser=str(local_path(tokeniser)))
    return Splitter(replace(settings, template=get_template(template).name) if template else settings).count


def _drops(paths: list[Path], hand: Hand) -> list[dict[str, Any]]:
    """From the manifests beside the files: what was dropped, and its share of what was read."""
    from trainer.data.manifest import read_manifest
    from trainer.data.pipeline import manifest_path

    found = []
    for path in paths:
        manifest_file = hand.beside(path, manifest_path(path).name)
        if manifest_file.exists():
            manifest = read_manifest(manifest_file)
            read = sum(each["samples"] for each in manifest["inputs"]) or 1
            for step in manifest["steps"]:
                for reason, number in step["reasons"].items():
                    entry = {
                        "file": hand.name(path),
                        "step": step["step"],
                        "reason": reason,
                        "samples": number,
                    }
                    found.append({**entry, "share": round(number / read, 6)})
    return found


def _drops_text(drops: list[dict[str, Any]]) -> str:
    if not drops:
        return ""
    rows = [
        (
            d["file"],
            d["step"],
            d["reason"],
            f"{d['samples']:,}",
            f"{d['share']:.2%}",
            _bar(d["samples"], drops),
        )
        for d in drops
    ]
    columns = ("FILE", "STEP", "DROPPED BECAUSE", "SAMPLES", "SHARE", "")
    return "\n" + table(columns, rows, right=("SAMPLES", "SHARE"))


def _bar(value: int, drops: list[dict[str, Any]]) -> str:
    from trainer.data.stats import bar

    return bar(value, max(drop["samples"] for drop in drops), _BAR_WIDTH // 2)


def _as_dict(counted: CorpusStats, name: Callable[[Path], str]) -> dict[str, Any]:
    from trainer.data.stats import histogram

    total = {"samples": sum(file.report.samples for file in counted.files), **counted.total.as_dict()}
    return {
        "files": [_file_dict(file, name) for file in counted.files],
        "total": {**total, "trimmed": counted.trimmed, "refused": counted.refused},
        "languages": dict(counted.total.languages.most_common()),
        "histogram": _buckets(histogram(counted.total.lengths)),
        "tokens_histogram": _buckets(histogram(counted.total.token_lengths)),
    }


def _buckets(buckets: list[Bucket]) -> list[dict[str, int]]:
    return [{"low": b.low, "high": b.high, "conversations": b.conversations} for b in buckets]


def _file_dict(file: FileStats, name: Callable[[Path], str]) -> dict[str, Any]:
    report = file.report
    return {
        "path": name(report.path),
        "container": report.container,
        "compression": report.compression,
        "forms": report.forms,
        "samples": report.samples,
        **file.counts.as_dict(),
        "trimmed": report.trimmed,
        "refused": report.refused,
        "first_refusal": report.first_refusal,
    }


def _as_text(counted: CorpusStats, name: Callable[[Path], str]) -> str:
    columns = ["FILE", "FORMAT", "SAMPLES", "USED", "TURNS", "WORDS", "MEDIAN", "LONGEST", "CHARACTERS"]
    if counted.total.token_lengths:
        columns.append("TOKENS")
    rows = [_row(name(file.report.path), file.report.format, file) for file in counted.files]
    if len(rows) > 1:
        samples = sum(file.report.samples for file in counted.files)
        rows.append(("total", "", f"{samples:,}", *_numbers(counted.total.as_dict())))
    text = table(columns, rows, right=columns[2:])
    text += "\n" + _lengths("WORDS", counted.total.lengths)
    if counted.total.token_lengths:
        text += "\n" + _lengths("TOKENS", counted.total.token_lengths)
    if counted.total.languages:
        text += "\n" + _languages(counted.total.languages)
    if counted.trimmed:
        text += f"\n{counted.trimmed:,} conversation(s) lost a last question that has no answer\n"
    refused = [
        (name(file.report.path), reason, f"{count:,}", file.report.first_refusal[reason])
        for file in counted.files
        for reason, count in sorted(file.report.refused.items(), key=lambda item: (-item[1], item[0]))
    ]
    if refused:
        text += "\n" + table(("FILE", "REFUSED BECAUSE", "SAMPLES", "THE FIRST"), refused, right=("SAMPLES",))
    return text


def _lengths(unit: str, lengths: Counter[int]) -> str:
    from trainer.data.stats import bar, histogram

    buckets = histogram(lengths)
    most = max((bucket.conversations for bucket in buckets), default=0)
    rows = [
        (f"{b.low:,}-{b.high:,}", f"{b.conversations:,}", bar(b.conversations, most, _BAR_WIDTH))
        for b in buckets
    ]
    return table((unit, "CONVERSATIONS", ""), rows, right=(unit, "CONVERSATIONS"))


def _languages(languages: Counter[str]) -> str:
    from trainer.data.stats import bar

    total, most = sum(languages.values()), max(languages.values())
    rows = [
        (name, f"{count:,}", f"{count / total:.1%}", bar(count, most, _BAR_WIDTH))
        for name, count in sorted(languages.items(), key=lambda item: (-item[1], item[0]))
    ]
    return table(("LANGUAGE", "CONVERSATIONS", "SHARE", ""), rows, right=("CONVERSATIONS", "SHARE"))


def _row(name: str, form: str, file: FileStats) -> tuple[str, ...]:
    return (name, form, f"{file.report.samples:,}", *_numbers(file.counts.as_dict()))


def _numbers(counts: dict[str, int]) -> tuple[str, ...]:
    keys = ["conversations", "turns", "words", "median_words", "longest_words", "characters"]
    return tuple(f"{counts[key]:,}" for key in (*keys, *(["tokens"] if "tokens" in counts else [])))


@options.verb(
    "inspect",
    examples=(
        "vlaunch data inspect train.jsonl",
        "vlaunch data inspect train.jsonl --id abc-part2 --template llama-3-chat --tokeniser models/llama",
    ),
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@options.option("--id", "name", metavar="ID", help="The conversation of this id.")
@options.option("--number", type=click.IntRange(min=1), default=1, help="The how-manieth usable one.")
@template
@tokeniser
@click.pass_context
def inspect(
    ctx: click.Context,
    files: tuple[str, ...],
    name: str | None,
    number: int,
    template: str | None,
    tokeniser: str | None,
) -> None:
    """One conversation as the model sees it; what it learns to write is green, special tokens are dim.

    Without colour, what is learnt stands between [[ and ]].
    """
    from dataclasses import replace

    from launcher.settings import cache_dir
    from trainer.conversation import get_template
    from trainer.data.buckets import at_hand, job_folder, local_path
    from trainer.data.split import SplitSettings, Splitter

    with at_hand(job_folder(cache_dir(), *files)) as hand:
        found = _find(hand.inputs(files), name, number)
    settings = SplitSettings(tokeniser=tokeniser and str(local_path(tokeniser)))
    splitter = Splitter(replace(settings, template=get_template(template).name) if template else settings)
    segments = splitter.template.render(found)
    tokens = splitter.count(found)
    about = "" if splitter.counter.exact else "about "
    say(f"{found.id}: {len(found.turns)} turns, {about}{tokens:,} tokens as {splitter.template.name}")
    data = {
        "id": found.id,
        "template": splitter.template.name,
        "tokens": tokens,
        "tokens_exact": splitter.counter.exact,
        "segments": [{"text": s.text, "trained": s.trained, "special": s.special} for s in segments],
    }
    emit(ctx, data, lambda: _painted(segments))


def _find(paths: list[Path], name: str | None, number: int) -> Conversation:
    from launcher.errors import UsageError
    from trainer.data.read import read_corpus

    seen = 0
    for conversation in read_corpus(paths):
        seen += 1
        if conversation.id == name if name is not None else seen == number:
            return conversation
    wanted = f"conversation {name!r}" if name is not None else f"conversation number {number}"
    raise UsageError(f"there is no {wanted} among {seen}", hint="--number 1 shows the first")


def _painted(segments: list[Segment]) -> str:
    import sys

    painted, learnt = [], False
    for segment in segments:
        text = segment.text.replace("\x1b", "\u241b")  # a corpus may hold terminal codes
        if colour(sys.stdout):
            painted.append(
                click.style(text, fg="green" if segment.trained else None, dim=segment.special or None)
            )
            continue
        if segment.trained != learnt:
            painted.append("[[" if segment.trained else "]]")
            learnt = segment.trained
        painted.append(text)
    return "".join(painted) + ("]]" if learnt else "") + "\n"
