"""Verbs that choose conversations, and the one that makes a corpus to try."""

from __future__ import annotations

import click

from launcher import options
from launcher.commands.data.steps import form, inputs, output
from launcher.output import emit, say

seed = options.option(
    "--seed", type=int, default=0, help="Another seed, another choice; the same one, the same."
)


@options.verb(
    "sample",
    examples=(
        "vlaunch data sample train.jsonl --to few.jsonl",
        "vlaunch data sample raw/*.json --to few.jsonl --count 1000 --seed 7",
    ),
)
@inputs
@output
@options.option("--count", type=click.IntRange(min=1), default=100, help="Conversations to choose.")
@seed
@form
@click.pass_context
def sample(ctx: click.Context, files: tuple[str, ...], to: str, count: int, seed: int, form: str) -> None:
    """Some conversations at random, in the order they stand."""
    from launcher.settings import cache_dir
    from trainer.data import sampling
    from trainer.data.buckets import at_hand, job_folder

    with at_hand(job_folder(cache_dir(), to)) as hand:
        path = hand.output(to)
        chosen = sampling.sample(hand.inputs(files), path, count, seed, form)
        hand.deliver(path)
        named = hand.name(path)
    say(f"{chosen} conversations")
    emit(ctx, {"path": named, "conversations": chosen}, f"{named}\n")


@options.verb(
    "split-train-test",
    examples=(
        "vlaunch data split-train-test all.jsonl --to train.jsonl --test heldout.jsonl",
        "vlaunch data split-train-test all.jsonl --to train.jsonl --test heldout.jsonl --share 0.01",
    ),
)
@inputs
@output
@options.option("--test", metavar="OUT", required=True, help="File for the conversations held out.")
@options.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.1,
    help="How much is held out.",
)
@seed
@form
@click.pass_context
def split_train_test(
    ctx: click.Context, files: tuple[str, ...], to: str, test: str, share: float, seed: int, form: str
) -> None:
    """Hold conversations out for evaluation; the parts of one are never on both sides."""
    from launcher.settings import cache_dir
    from trainer.data import sampling
    from trainer.data.buckets import at_hand, job_folder

    with at_hand(job_folder(cache_dir(), to, test)) as hand:
        paths = hand.output(to), hand.output(test)
        sides = sampling.split_train_test(hand.inputs(files), *paths, share, seed, form)
        hand.deliver(*paths)
        train_name, test_name = map(hand.name, paths)
    say(f"{sides.train} samples to train on, {sides.test} held out")
    data = {
        "train": {"path": train_name, "samples": sides.train},
        "test": {"path": test_name, "samples": sides.test},
    }
    emit(ctx, data, f"{train_name}\n{test_name}\n")


@options.verb(
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
