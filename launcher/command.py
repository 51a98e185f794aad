"""Our click: verbs that lead with examples, and options that know the environment and the settings files.

Every command has --json, --debug, --quiet, --version and -h by itself, before and after the verb. Apart from
click this imports nothing of weight: it is all that `vlaunch --help` pays for. Verbs import launcher.options.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from launcher.errors import UsageError, nearest
from launcher.output import Session

if TYPE_CHECKING:
    from launcher.settings import Found

F = TypeVar("F", bound=Callable[..., Any])
ENV_PREFIX = "VLAUNCH_"
WIDEST_HELP = 100  # columns; longer lines are hard to read
OTHER_PROGRAMS = ("torchrun", "deepspeed", "python", "python3")  # whose lines some verbs take after --


def verb(name: str, *, examples: Sequence[str], **attrs: Any) -> Callable[[Callable[..., Any]], Command]:
    """Decorates the function of a verb, or of a part of one."""
    return click.command(name, cls=Command, examples=examples, **attrs)


def verb_group(name: str, *, examples: Sequence[str], **attrs: Any) -> Callable[[Callable[..., Any]], Group]:
    """Decorates the function of a verb with parts; `@command.command("part", examples=...)` adds one."""
    return click.group(name, cls=Group, examples=examples, **attrs)


def option(*names: str, **attrs: Any) -> Callable[[F], F]:
    """An option of one verb. One that two verbs have belongs into launcher/options.py."""
    return click.option(*names, cls=Option, **attrs)


class Context(click.Context):
    """A click context that finds options' values in settings files, when and only when one is needed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.obj = self.obj or Session()
        self.max_content_width = WIDEST_HELP
        self.file_values: dict[str, Found] | None = None
        self.part_follows = False  # `runs prune`: the options of `runs` itself are not asked for

    @property
    def verb_path(self) -> tuple[str, ...]:
        """The words after `vlaunch`: ("data", "stats")."""
        return (*self.parent.verb_path, str(self.info_name)) if isinstance(self.parent, Context) else ()

    def from_files(self) -> dict[str, Found]:
        """This command's values by option's long name, each with its file."""
        if self.file_values is None:
            from launcher import settings

            tree = CommandTree(self.find_root())
            try:
                files = settings.load()
                settings.refuse_unknown(files, self.verb_path, tree)
            except UsageError:
                if not getattr(self.command, "lenient", False):
                    raise
                files = []  # vlaunch doctor goes on, and reports what is wrong itself
            self.file_values = settings.resolve(files, self.verb_path, tree)
        return self.file_values

    def lookup_default(self, name: str, call: bool = True) -> Any:
        """click asks this after the command line and the environment, before the default."""
        if self.resilient_parsing or self.part_follows or not is_verb(self.command):
            return None  # shell completion, --help, or not yet at the verb
        for param in self.command.params:
            if isinstance(param, Option) and param.name == name and param.setting in self.from_files():
                return param.from_file(self.from_files()[param.setting])
        return None


def is_verb(command: click.Command) -> bool:
    """Does it do something by itself; a verb may have parts as well, as `runs` has `runs prune`."""
    return not isinstance(command, click.Group) or command.invoke_without_command


class CommandTree:
    """The commands as launcher/settings.py wants to know them."""

    def __init__(self, root: click.Context) -> None:
        self.root = root

    def parts(self, path: tuple[str, ...]) -> Collection[str]:
        command = self.at(path)
        return command.list_commands(self.root) if isinstance(command, click.Group) else ()

    def options(self, path: tuple[str, ...]) -> set[str]:
        command = self.at(path)
        found = (
            {p.setting for p in command.params if isinstance(p, Option)}
            if command and is_verb(command)
            else set()
        )
        return found.union(*(self.options((*path, part)) for part in self.parts(path)))

    def at(self, path: tuple[str, ...]) -> click.Command | None:
        command: click.Command | None = self.root.command
        for name in path:
            try:
                command = command.get_command(self.root, name) if isinstance(command, click.Group) else None
            except UsageError:  # a verb that this installation lacks
                return None
        return command


class Option(click.Option):
    """An option that VLAUNCH_<OPTION> and settings files can set, and whose errors say which one did."""

    def __init__(self, param_decls: Sequence[str], **attrs: Any) -> None:
        attrs.setdefault("show_default", not attrs.get("is_flag"))
        super().__init__(param_decls, **attrs)
        long = [name for name in self.opts if name.startswith("--")]
        self.setting = (long or self.opts)[0].lstrip("-")
        self.envvar = self.envvar or ENV_PREFIX + self.setting.upper().replace("-", "_")

    def get_default(self, ctx: click.Context, call: bool = True) -> Any:
        return None if getattr(ctx, "part_follows", False) else super().get_default(ctx, call)

    def from_file(self, found: Found) -> Any:
        """A TOML value as click wants it: text, a list of texts for a repeatable option, or a truth."""
        value = found.value
        if isinstance(value, dict) and self.multiple:
            value = [f"{key}={_as_text(item)}" for key, item in value.items()]
        items = value if isinstance(value, list) else [value]
        fits = all(not isinstance(i, (dict, list)) and isinstance(i, bool) == self.is_flag for i in items)
        if not fits or (isinstance(value, list) and not self.multiple):
            wanted = "true or false" if self.is_flag else "a list of values" if self.multiple else "one value"
            raise UsageError(f"{self.setting} in {found.file} must be {wanted}, not {_as_text(found.value)}")
        if self.multiple:
            return [_as_text(item) for item in items]
        return value if self.is_flag else _as_text(value)

    def source(self, ctx: click.Context, source: ParameterSource | None) -> str:
        """Where a value came from, in the words of messages and of `vlaunch doctor`."""
        if source is ParameterSource.ENVIRONMENT:
            return str(self.envvar)
        if source is ParameterSource.DEFAULT_MAP and isinstance(ctx, Context):
            return ctx.from_files()[self.setting].file
        return "default" if source is ParameterSource.DEFAULT else "command line"

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        try:
            return super().type_cast_value(ctx, value)
        except click.BadParameter as error:
            source = ctx.get_parameter_source(str(self.name))
            if source is ParameterSource.ENVIRONMENT:
                error.param_hint = str(self.envvar)
            elif source is ParameterSource.DEFAULT_MAP:
                error.param_hint = f"{self.setting} in {self.source(ctx, source)}"
            raise


def _as_text(value: object) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, default=str)


class GlobalFlag(Option):
    """--json, --debug, --quiet: on every command, before and after the verb; kept in the Session."""

    def __init__(self, name: str) -> None:
        super().__init__([f"--{name}"], is_flag=True, expose_value=False, hidden=True, callback=self.keep)

    @staticmethod
    def keep(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        flags = ctx.find_object(Session)
        if value and flags is not None:
            setattr(flags, str(param.name), True)


def _global_params() -> list[click.Parameter]:
    eager: dict[str, Any] = {"is_flag": True, "is_eager": True, "expose_value": False, "hidden": True}
    return [
        *(GlobalFlag(name) for name in ("json", "debug", "quiet")),
        click.Option(["--version"], callback=_print_version, **eager),
        click.Option(["-h", "--help"], callback=_print_help, **eager),
    ]


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        import launcher

        click.echo(f"vlaunch {launcher.__version__}")
        ctx.exit()


def _print_help(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(ctx.get_help())
        ctx.exit()


class Command(click.Command):
    """A verb, or a part of one: `examples` come first in its help, the global flags last."""

    context_class = Context

    def __init__(
        self, name: str | None, *, examples: Sequence[str] = (), lenient: bool = False, **attrs: Any
    ) -> None:
        super().__init__(name, add_help_option=False, **attrs)
        self.examples = tuple(examples)
        self.lenient = lenient  # works without the settings files where they are broken
        self.params.extend(_global_params())

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = tuple(args)  # click's parser empties it
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # click's parser leaves it out, and the hint needs it
            if isinstance(error, click.NoSuchOption) and (program := self._other_program(words)):
                hint = f"the line of another program comes after --: {ctx.command_path} -- {program} ..."
                raise UsageError(f"no option {error.option_name}", hint=hint) from None
            raise

    def _other_program(self, words: Sequence[str]) -> str | None:
        """The one whose line was given without `--`, to a verb that takes such lines."""
        if not any(isinstance(param, click.Argument) and param.name == "line" for param in self.params):
            return None
        before = ("", *takewhile(lambda word: word != "--", words))
        return next((b for a, b in pairwise(before) if b in OTHER_PROGRAMS and a != "--strategy"), None)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write("Examples:\n" + "".join(f"  {example}\n" for example in self.examples) + "\n")
        super().format_help(ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        formatter.write(
            "\nEverywhere: --json --debug --quiet --version -h. Each option is also a VLAUNCH_<OPTION>\n"
            "variable and a key of vlaunch.toml; `vlaunch doctor` shows every value and its source.\n"
        )


class Group(Command, click.Group):
    """A verb with parts (`vlaunch data stats`), or the whole of vlaunch."""

    command_class = Command
    other_words: Mapping[str, str] = {}  # what people call a verb elsewhere

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if isinstance(ctx, Context) and args:
            ctx.part_follows = args[0] in self.list_commands(ctx)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.list_commands(ctx) and not ctx.resilient_parsing:
            raise self.unknown_verb(ctx, args[0])
        return super().resolve_command(ctx, args)

    def unknown_verb(self, ctx: click.Context, word: str) -> UsageError:
        """Says which verb was probably meant."""
        meant = self.other_words.get(word) or nearest(word, self.list_commands(ctx))
        hint = (
            f"did you mean {ctx.command_path} {meant}?" if meant else f"{ctx.command_path} --help lists them"
        )
        return UsageError(f"{ctx.command_path} has no verb {word!r}", hint=hint)


Group.group_class = Group  # what @command.group(...) makes
