"""The steps of the pipeline as verbs: each is the pass of trainer/data/pipeline.py with its own part switched on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from launcher import options
from launcher.commands.data.progress import progress_bar
from launcher.output import emit, say, table

if TYPE_CHECKING:
    from trainer.data.buckets import Hand
    from trainer.data.manifest import Manifest
    from trainer.data.pipeline import Job
    from trainer.data.steps import Settings

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

inputs = click.argument("files", metavar="IN...", nargs=-1, required=True)
output = options.option(
    "--to", "to", metavar="OUT", required=True, help="File to write: .jsonl, .json (.gz, .zst) or .parquet."
)
form = options.option(
    "--form",
    type=click.Choice(["sharegpt", "openai", "alpaca"]),
    default="sharegpt",
    help="Form of the output.",
)
template = options.option("--template", metavar="NAME", help="Chat template.  [default: vicuna_v1.1]")
tokeniser = options.option(
    "--tokeniser",
    metavar="PATH",
    help="A model's tokenizer.json, or its folder.  [default: a stated estimate]",
)


def _all(*decorators: Decorator) -> Decorator:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for each in reversed(decorators):
            function = each(function)
        return function

    return decorate


_streams = _all(
    inputs,
    output,
    options.workers,
    options.option("--rejected", metavar="FILE", help="Keep every dropped sample there, with its reason."),
    options.option(
        "--shard", metavar="I/N", help="Do only share I of N (from 0); the last share writes the output."
    ),
    form,
)
_cleaning = _all(
    options.option(
        "--html",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        help="Which answers are HTML and become Markdown.",
    ),
)
_filtering = _all(
    options.option("--on", multiple=True, metavar="FILTER", help="Switch a filter on; repeatable."),
    options.option("--off", multiple=True, metavar="FILTER", help="Switch a filter off; repeatable."),
    options.option(
        "--phrases", metavar="FILE", help="TOML with the lists of phrases, instead of the shipped ones."
    ),
    options.option("--keep", metavar="en,zh", help="Languages to keep; what is unknown is kept."),
    options.option("--skip", metavar="ko", help="Languages to leave out."),
    options.option(
        "--threshold", type=click.FloatRange(0, 1), help="Below this confidence a language is unknown."
    ),
    options.option(
        "--against", multiple=True, metavar="FILE", help="Leave out what holds these evaluation questions."
    ),
)
_splitting = _all(
    options.option("--max-length", type=click.IntRange(min=16), help="Tokens of one part.  [default: 2048]"),
    template,
    tokeniser,
    options.option(
        "--overlong",
        type=click.Choice(["keep", "shorten", "drop"]),
        default="keep",
        help="A round longer than that: kept apart, shortened at a sentence or code block, or dropped by name.",
    ),
)
_deduping = _all(
    options.option(
        "--near", type=click.FloatRange(0.5, 1), help="Share of text of a near duplicate.  [default: 0.85]"
    ),
    options.option("--exact", is_flag=True, help="Only what is the same word for word."),
)


@options.verb(
    "prepare",
    examples=(
        "vlaunch data prepare raw/*.json --to train.jsonl --tokeniser models/llama --rejected dropped.jsonl",
        "vlaunch data prepare a.jsonl.zst b.parquet --to train.jsonl --keep en,zh --against questions.jsonl",
    ),
)
@_streams
@_cleaning
@_filtering
@_deduping
@_splitting
@click.pass_context
def prepare(ctx: click.Context, /, **given: Any) -> None:
    """The whole pipeline in one pass: read, clean, filter, language, dedupe, split, and a manifest beside the output.

    Started again after a kill, it goes on. The bytes of the output do not depend on --workers.
    """
    _run(ctx, given, {"clean", "filter", "dedupe", "split"})


@options.verb(
    "merge",
    examples=(
        "vlaunch data merge a.json b.jsonl.gz --to all.jsonl",
        "vlaunch data merge shards/*.parquet --to all.jsonl.zst",
    ),
)
@_streams
@click.pass_context
def merge(ctx: click.Context, /, **given: Any) -> None:
    """Several files to one, text unchanged; ids that occur twice are made unique."""
    _run(ctx, given, set())


@options.verb(
    "clean",
    examples=(
        "vlaunch data clean sharegpt_html.json --to clean.jsonl",
        "vlaunch data clean sharegpt_html.json --to clean.jsonl --rejected broken.jsonl",
    ),
)
@_streams
@_cleaning
@click.pass_context
def clean(ctx: click.Context, /, **given: Any) -> None:
    """HTML answers to Markdown, nothing lost. Plain text, human messages above all, is left as it is."""
    _run(ctx, given, {"clean"})


@options.verb(
    "filter",
    examples=(
        "vlaunch data filter clean.jsonl --to good.jsonl --rejected dropped.jsonl",
        "vlaunch data filter clean.jsonl --to good.jsonl --keep en --off repetition",
    ),
)
@_streams
@_filtering
@click.pass_context
def filter_(ctx: click.Context, /, **given: Any) -> None:
    """Leave out what is not worth learning: by filters with reasons, by language, by evaluation questions."""
    _run(ctx, given, {"filter"})


@options.verb(
    "split",
    examples=(
        "vlaunch data split good.jsonl --to parts.jsonl --tokeniser models/llama --max-length 4096",
        "vlaunch data split good.jsonl --to parts.jsonl --overlong shorten",
    ),
)
@_streams
@_splitting
@click.pass_context
def split(ctx: click.Context, /, **given: Any) -> None:
    """Cut long conversations between rounds so that each part fits the context; no round is lost."""
    _run(ctx, given, {"split"})


@options.verb(
    "dedupe",
    examples=(
        "vlaunch data dedupe a.jsonl b.jsonl --to unique.jsonl",
        "vlaunch data dedupe a.jsonl b.jsonl --to unique.jsonl --near 0.7 --rejected twice.jsonl",
    ),
)
@_streams
@_deduping
@click.pass_context
def dedupe(ctx: click.Context, /, **given: Any) -> None:
    """Of conversations that are the same or nearly so, across all files, keep the longest."""
    _run(ctx, given, {"dedupe"})


@options.verb(
    "convert",
    examples=(
        "vlaunch data convert alpaca.json --to chats.jsonl",
        "vlaunch data convert chats.jsonl --to chats.parquet --form openai",
    ),
)
@_streams
@click.pass_context
def convert(ctx: click.Context, /, **given: Any) -> None:
    """Another form or another container, text unchanged."""
    _run(ctx, given, set())


STEPS: Sequence[click.Command] = (prepare, merge, clean, filter_, split, dedupe, convert)


def _run(ctx: click.Context, given: dict[str, Any], steps: set[str]) -> None:
    import atexit
    import gc

    from launcher.settings import cache_dir
    from trainer.data.buckets import at_hand, job_folder
    from trainer.data.pipeline import cores
    from trainer.data.pipeline import prepare as run

    # Hardly anything here is a cycle, and much of it stays to the end: every module, token and word would be looked
    # over again and again, in the workers as well, and once more at exit.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    with (
        at_hand(job_folder(cache_dir(), given["to"], given["rejected"] or "")) as hand,
        progress_bar() as watch,
    ):
        job = _job(given, steps, hand)
        manifest = run(job, given["workers"] or cores(), watch)
        if manifest is not None:
            hand.deliver(job.output, job.rejected, last=job.manifest)
    if manifest is None:
        say(f"this share is done; its parts wait in {job.work} for the others")
        emit(ctx, {"complete": False, "work": job.work}, "")
        return
    forms = sorted({name for each in manifest["inputs"] for name in each["forms"]})
    say(f"read {' and '.join(forms) or 'nothing usable'}; wrote {given['to']} and {job.manifest.name}")
    emit(ctx, {"complete": True, "manifest": manifest}, lambda: summary(manifest))


def _job(given: dict[str, Any], steps: set[str], hand: Hand) -> Job:
    from launcher.errors import UsageError
    from launcher.settings import cache_dir
    from trainer.data.buckets import is_remote
    from trainer.data.pipeline import Job

    if given["shard"] is not None and is_remote(given["to"]):
        raise UsageError(
            f"--shard needs a folder that all machines see, and {given['to']} is none",
            hint="mount the bucket, as task_templates/data.yaml does, or leave --shard out",
        )
    shard, rejected = _shard(given["shard"]), given["rejected"]
    output, rejected_path = hand.output(given["to"]), hand.output(rejected) if rejected else None
    settings = _settings(given, steps, hand)
    inputs = hand.inputs(given["files"])
    return Job(
        inputs=tuple(inputs),
        output=output,
        settings=settings,
        rejected=rejected_path,
        shard=shard,
        names=tuple(map(hand.name, inputs)),
        cache=cache_dir(),
    )


def _settings(given: dict[str, Any], steps: set[str], hand: Hand) -> Settings:
    from trainer.data.steps import DedupeSettings, Settings

    dedupe = None
    if "dedupe" in steps:
        near = {"near": given["near"]} if given["near"] is not None else {}
        dedupe = DedupeSettings(None) if given["exact"] else DedupeSettings(**near)
    return Settings(
        clean=_clean_settings(given, steps) if steps & {"clean", "filter"} else None,
        questions=_questions(given.get("against") or (), hand),
        language=_language_rule(given),
        dedupe=dedupe,
        split=_split_settings(given) if "split" in steps else None,
        form=given["form"],
        keep_rejected=bool(given["rejected"]),
    )


def _clean_settings(given: dict[str, Any], steps: set[str]) -> Any:
    from dataclasses import replace

    from trainer.data.buckets import local_path
    from trainer.data.clean import clean_settings

    phrases = given.get("phrases")
    html = given.get("html", "never")
    made = clean_settings(
        given.get("on", ()),
        given.get("off", ()),
        html=html,
        phrases_file=local_path(phrases) if phrases else None,
    )
    return made if "filter" in steps else replace(made, filters=frozenset())


def _language_rule(given: dict[str, Any]) -> Any:
    if not (given.get("keep") or given.get("skip")):
        return None
    from trainer.data.language import language_rule

    threshold = {} if given["threshold"] is None else {"threshold": given["threshold"]}
    return language_rule(given["keep"], given["skip"], **threshold)


def _questions(files: Sequence[str], hand: Hand) -> Any:
    if not files:
        return None
    from trainer.data.contamination import read_questions

    return read_questions(hand.inputs(files))


def _split_settings(given: dict[str, Any]) -> Any:
    from trainer.conversation import get_template
    from trainer.data.buckets import local_path
    from trainer.data.split import SplitSettings

    tokeniser = given["tokeniser"]
    asked = {
        "max_length": given["max_length"],
        "template": given["template"] and get_template(given["template"]).name,
        "tokeniser": tokeniser and str(local_path(tokeniser)),
        "overlong": given["overlong"],
    }
    made = SplitSettings(**{key: value for key, value in asked.items() if value is not None})
    made.counter()  # a tokeniser that cannot be used is said before anything is read
    return made


def _shard(text: str | None) -> tuple[int, int]:
    from launcher.errors import UsageError

    if text is None:
        return (0, 1)
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UsageError(
            f"--shard {text} is not I/N with I from 0 to N-1", hint="--shard 0/4 is the first of four"
        )
    return (int(index), int(count))


def summary(manifest: Manifest) -> str:
    """The manifest for people: every step's in and out, every reason, and what came out."""
    rows: list[tuple[str, ...]] = []
    for step in manifest["steps"]:
        rows.append((step["step"], f"{step['in']:,}", f"{step['out']:,}", "", ""))
        rows += [("", "", "", f"{number:,}", reason) for reason, number in step["reasons"].items()]
        for name in ("overlong", "shortened", "dropped_rounds"):
            if step.get(name):
                rows.append(("", "", "", f"{step[name]:,}", ROUNDS[name]))
    text = table(("STEP", "IN", "OUT", "DROPPED", "BECAUSE"), rows, right=("IN", "OUT", "DROPPED"))
    if notes := manifest["notes"]:
        text += "\n" + "".join(f"{number:,} x {name}\n" for name, number in notes.items())
    out = manifest["output"]
    text += (
        f"\n{out['samples']:,} samples of {out['conversations']:,} conversations, {out['rounds']:,} rounds"
    )
    if out["tokens"] is not None:
        about = "" if manifest["tokens_exact"] else "about "
        text += f", {about}{out['tokens']:,} tokens ({manifest['tokeniser']}, {manifest['template']})"
    return text + f"\nsha256 {out['sha256']}\n"


ROUNDS = {
    "overlong": "(kept) rounds longer than the limit, each a part of its own",
    "shortened": "(kept) rounds shortened to the limit",
    "dropped_rounds": "rounds longer than the limit",
}
