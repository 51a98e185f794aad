"""`vlaunch`: the table of verbs, and the one place where an error becomes text and an exit code.

`vlaunch --help` imports click and nothing else of weight; a verb's module is imported when the verb is used.
Exit codes: 0 ok, 1 failed, 2 usage, 3 not ready, 4 the remote job failed, 5 stopped at a limit, 130 Ctrl-C,
141 the reader of our output went away. On stderr an error is "Error: ..." and, where there is something to
do, "Hint: ..."; with --json it is on stdout too, as one line:

    {"version": 1, "error": {"type": "UsageError", "message": "...", "hint": "...", "exit_code": 2}}

A verb that has printed its answer says how it went by ctx.exit(code), not by raising: one answer, one object.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import click

from launcher.command import Group
from launcher.errors import UsageError, VlaunchError, nearest
from launcher.output import Session, to_json

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Train": {
        "train": ("launcher.commands.train", "Train a model; goes on by itself after every preemption"),
        "plan": ("launcher.commands.plan", "What would be run: fit, hours, dollars, risks; starts nothing"),
        "resume": ("launcher.commands.resume", "Go on with a run where its last checkpoint left it"),
        "stop": ("launcher.commands.stop", "End a run at a checkpoint and give its machines back"),
    },
    "Serve": {
        "serve": ("launcher.commands.serve", "A model behind a chat page and OpenAI's API"),
        "chat": ("launcher.commands.chat", "Talk to a model in the terminal"),
        "message": ("launcher.commands.message", "One question, one answer, an exit code"),
        "compose": (
            "launcher.commands.compose",
            "Files for docker compose: serving, and training on request",
        ),
    },
    "Look": {
        "runs": ("launcher.commands.runs", "Every run in the store"),
        "status": ("launcher.commands.status", "Where a run is: step, loss, attempts, checkpoints"),
        "logs": ("launcher.commands.logs", "What a run's machines printed"),
        "metrics": (
            "launcher.commands.metrics",
            "Loss, gradient norm and rate of every step, each step once",
        ),
        "cost-report": ("launcher.commands.cost_report", "What a run cost: useful, lost and saved dollars"),
        "dashboard": (
            "launcher.commands.dashboard",
            "Every run on a page that refreshes by itself; W&B's workspace",
        ),
    },
    "Prepare": {
        "data": ("launcher.commands.data", "Make and look at training conversations"),
        "doctor": ("launcher.commands.doctor", "Check this machine, the store and the settings"),
        "completion": ("launcher.commands.completion", "Shell completion for bash, zsh or fish"),
    },
}
VERBS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}

# What people type who come from sky, docker, kubectl, git.
OTHER_WORDS = {
    "launch": "train",
    "run": "train",
    "ls": "runs",
    "list": "runs",
    "ps": "status",
    "queue": "runs",
    "cancel": "stop",
    "down": "stop",
    "kill": "stop",
    "cost": "cost-report",
    "check": "doctor",
    "restart": "resume",
    "continue": "resume",
    "estimate": "plan",
    "up": "serve",
    "deploy": "serve",
    "ask": "message",
    "docker": "compose",
}
COMPLETE_VARIABLE = "_VLAUNCH_COMPLETE"


class Verbs(Group):
    """The root group. A verb is imported only when it is named."""

    other_words = OTHER_WORDS

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _ = VERBS[cmd_name]
        try:
            command = import_module(module).command
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise UsageError(f"vlaunch {cmd_name} is not in this version") from None
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] == "help":  # vlaunch help VERB
            if not args[1:]:
                click.echo(ctx.get_help())
                ctx.exit()
            args = [*args[1:], "--help"]
        return super().resolve_command(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write("Usage: vlaunch VERB [OPTIONS]        vlaunch VERB --help says more\n")

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"\n  {self.help}\n")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, verbs in SECTIONS.items():
            formatter.write(f"\n{title}:\n")
            formatter.write("".join(f"  {name:<12} {text}\n" for name, (_, text) in verbs.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Verbs from the table, so that a TAB imports no verb."""
        from click.shell_completion import CompletionItem

        words = [
            CompletionItem(name, help=text)
            for name, (_, text) in VERBS.items()
            if name.startswith(incomplete)
        ]
        return words or click.Command.shell_complete(self, ctx, incomplete)


root = Verbs(
    "vlaunch",
    examples=(
        "vlaunch train --size tiny --spot --infra local    # a real run on this machine",
        "vlaunch cost-report                               # what the runs cost, and saved",
    ),
    help="Train language models on machines that may be taken away, and lose nothing.",
    no_args_is_help=True,
    subcommand_metavar="VERB",
)


def main(argv: Sequence[str] | None = None, *, verbs: Group = root) -> int:
    """Runs one command line and returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if instruction := os.environ.get(COMPLETE_VARIABLE):
        from click.shell_completion import shell_complete

        return shell_complete(verbs, {}, "vlaunch", COMPLETE_VARIABLE, instruction)
    session = Session()
    try:
        with verbs.make_context("vlaunch", list(args), obj=session) as ctx:
            verbs.invoke(ctx)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return 141  # 128 + SIGPIPE, as the shell reports it of any filter
        # A usage error can come before the flags are known; the words themselves are the next best.
        session.json = session.json or "--json" in args
        session.debug = session.debug or "--debug" in args
        return _report(error, session)
    except KeyboardInterrupt as error:
        return _report(error, session)


class Failure(NamedTuple):
    """An error as it is told."""

    type: str
    message: str
    hint: str | None
    exit_code: int


def explain(error: BaseException) -> Failure:
    """Every error, ours or not, as a sentence, a hint and an exit code."""
    kind = type(error).__name__
    if isinstance(error, VlaunchError):
        return Failure(kind, error.message, error.hint, error.exit_code)
    if isinstance(error, click.ClickException):
        return Failure("UsageError", _usage_message(error), _usage_hint(error), error.exit_code)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return Failure("Interrupted", "interrupted", None, 130)
    if isinstance(error, OSError) and error.strerror and error.filename:
        return Failure(kind, f"{error.filename}: {error.strerror}", None, 1)
    return Failure(kind, f"unexpected {kind}: {error}", "rerun with --debug for the traceback", 1)


def _usage_message(error: click.ClickException) -> str:
    if isinstance(error, click.NoSuchOption):
        return f"no option {error.option_name}"
    message = " ".join(error.format_message().split()).rstrip(".")
    return message[:1].lower() + message[1:]


def _usage_hint(error: click.ClickException) -> str | None:
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return None
    path = error.ctx.command_path
    if isinstance(error, click.NoSuchOption):
        known = [name for param in error.ctx.command.get_params(error.ctx) for name in param.opts]
        if close := nearest(error.option_name, known):
            return f"did you mean {close}? {path} --help lists the options"
    return f"{path} --help lists the options"


def _report(error: BaseException, session: Session) -> int:
    failure = explain(error)
    if session.debug:
        import traceback

        traceback.print_exception(error)
    click.echo(f"Error: {failure.message}", err=True)
    if failure.hint:
        click.echo(f"Hint: {failure.hint}", err=True)
    if session.json:
        click.echo(to_json({"error": failure._asdict()}))
    return failure.exit_code


def _reader_is_gone() -> bool:
    """Whether the pipe that broke is our own output (`vlaunch runs | head -1`); then it is closed quietly."""
    import select

    for stream in (sys.stdout, sys.stderr):
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError):  # replaced by something that is no file, as in a test
            continue
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
            # Or the interpreter tries once more at exit, and complains.
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
