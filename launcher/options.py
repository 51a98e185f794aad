"""The options that verbs share, defined once: same flag, same meaning on every verb.

A verb in launcher/commands/ needs this module and launcher.output, and imports the rest inside its function:

    @options.verb("runs", examples=("vlaunch runs", "vlaunch runs --json | jq '.runs[].name'"))
    @options.store
    @click.pass_context
    def command(ctx: click.Context, store: str) -> None:
        \"""Every run in the store.\"""
        from launcher.runs.runview import list_runs

        found = list_runs(store)
        emit(ctx, {"runs": found}, lambda: table(["RUN", "STEP"], [(r.name, r.step) for r in found]))
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import click

from launcher import values
from launcher.command import Command, Group, Option, option, verb, verb_group

__all__ = ["Command", "Group", "Option", "ValueType", "option", "verb", "verb_group"]


def _default_store() -> str:
    from launcher.settings import default_store

    return default_store()


class ValueType(click.ParamType):
    """A type from launcher/values.py: its `parse`, with the flag named in what goes wrong."""

    def __init__(
        self,
        name: str,
        parse: Callable[[str], Any],
        kind: type | None = None,
        complete: Collection[str] = (),
    ) -> None:
        self.name = name
        self.parse = parse
        self.kind = kind
        self.complete = complete

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if self.kind is not None and isinstance(value, self.kind):
            return value  # a default that is already parsed
        try:
            return self.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        return rv.replace(",", " ").split() if self.name == "infra" else super().split_envvar_value(rv)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(word) for word in self.complete if word.startswith(incomplete)]


DURATION = ValueType("duration", values.Duration.parse, values.Duration)
DOLLARS = ValueType("dollars", values.Dollars.parse, values.Dollars)
PREEMPT_EVERY = ValueType("duration[,jitter]", values.PreemptEvery.parse, values.PreemptEvery)
KEY_VALUE = ValueType("key=value", values.KeyValue.parse, values.KeyValue)
STORE_URI = ValueType("uri", values.parse_store_uri, complete=[f"{s}://" for s in values.STORE_SCHEMES])
INFRA = ValueType("infra", values.Infra.parse, values.Infra, complete=values.CLOUDS)
GPUS = ValueType("gpus", values.Gpus.parse, values.Gpus)


# Shared options. Plain names: `@options.store`. A verb that wants a note of its own calls option().
store = option(
    "--store",
    type=STORE_URI,
    default=_default_store,
    show_default="your data folder",
    help="Where runs are kept: file:///..., s3://..., gs://... or a folder.",
)
yes = option("--yes", "-y", is_flag=True, show_default=False, help="Do not ask.")
dry_run = option(
    "--dry-run", is_flag=True, show_default=False, help="Say what would be done, and do nothing."
)
detach = option(
    "--detach", "-d", is_flag=True, show_default=False, help="Return once it runs; `vlaunch logs` follows it."
)
follow = option("--follow", "-f", is_flag=True, show_default=False, help="Go on until the run ends.")
name = option("--name", "-n", help="Name of the run.  [default: made from the recipe and the time]")
infra = option(
    "--infra",
    type=INFRA,
    multiple=True,
    default=("local",),
    help="Where machines may come from, repeatable: local, aws, gcp/REGION, slurm/CLUSTER/PARTITION. The cheapest is "
    "taken first; those without a price in this order.",
)
gpus = option("--gpus", type=GPUS, metavar="NAME[:COUNT]", help="Accelerators of one node: A100-80GB:8.")
num_nodes = option("--num-nodes", type=click.IntRange(min=1), default=1, help="Machines of one attempt.")
spot = option(
    "--spot/--on-demand", default=False, help="Machines that may be taken away, or those that may not."
)
deadline = option("--deadline", type=DURATION, help="Stop at a checkpoint when the run is this old.")
max_cost = option("--max-cost", type=DOLLARS, help="Stop at a checkpoint when the run has cost this much.")
catalog = option(
    "--catalog",
    type=click.Path(),
    metavar="FOLDER",
    show_default="SkyPilot's, ~/.sky/catalogs/v8",
    help="Prices of clouds: a folder with CLOUD/vms.csv.",
)
set_fields = option(
    "--set", "set_fields", type=KEY_VALUE, multiple=True, help="Any field of the configuration; repeatable."
)
workers = option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one per core]")
output_html = option(
    "--html", type=click.Path(dir_okay=False, writable=True), help="Write one self-contained file."
)

run_argument = click.argument("run", metavar="RUN")
optional_run_argument = click.argument("run", metavar="[RUN]", required=False)
