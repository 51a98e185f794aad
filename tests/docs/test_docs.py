"""What the pages say is so: links lead somewhere, commands parse, tables are the program's own."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from launcher.cli import VERBS, root
from launcher.command import ENV_PREFIX, GlobalFlag, Option
from tests.conftest import REPOSITORY, Ran
from tests.docs import pages
from trainer import errors

ROOMS = ("launcher", "task_templates", "trainer", "serving")
CLI = pages.DOCS / "cli.md"
ARCHITECTURE = pages.DOCS / "architecture.md"
COMMANDS = [
    pytest.param(command, id=f"{pages.name(block.page)}:{block.line} {command[:60]}")
    for block in pages.blocks()
    for command in block.commands
]


def options_of(command: click.Command) -> Iterator[str]:
    """Long names of the options of a verb and of its parts."""
    for param in command.params:
        if isinstance(param, Option) and not isinstance(param, GlobalFlag):
            yield from (name for name in (*param.opts, *param.secondary_opts) if name.startswith("--"))
    if isinstance(command, click.Group):
        for part in command.commands.values():
            yield from options_of(part)


def verbs() -> dict[str, click.Command]:
    found = {name: root.get_command(click.Context(root), name) for name in VERBS}
    return {name: command for name, command in found.items() if command is not None}


def parse(words: list[str]) -> None:
    """Parse a vlaunch command line as the program does, without carrying it out."""
    name, command, args, context = "vlaunch", root, words, None
    while True:
        context = command.make_context(name, args, parent=context)
        if not isinstance(command, click.Group):
            return
        rest = [*context.protected_args, *context.args]
        if command.invoke_without_command and not rest:
            return
        name, found, args = command.resolve_command(context, rest)
        assert name is not None and found is not None
        command = found


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_every_relative_link_leads_to_a_page_and_a_heading(page: Path) -> None:
    wrong = []
    for target in pages.links(page):
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (fragment and fragment not in pages.anchors(file)):
            wrong.append(target)
    assert not wrong


def test_every_page_is_reached_from_the_index() -> None:
    reached, todo = set(), [REPOSITORY / "README.md", pages.DOCS / "index.md"]
    while todo:
        page = todo.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            targets = (target.partition("#")[0] for target in pages.links(page))
            todo += [(page.parent / target).resolve() for target in targets if target]
    assert set(pages.PAGES) <= reached


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_pages_is_one_that_the_program_takes(command: str) -> None:
    variables, words = pages.words(command)
    known = {param.envvar for verb in verbs().values() for param in verb.params if isinstance(param, Option)}
    assert {name for v in variables if (name := v.partition("=")[0]).startswith(ENV_PREFIX)} <= known
    if words[:1] == ["vlaunch"]:
        try:
            parse(words[1:])
        except click.exceptions.Exit as asked_for_help:
            assert asked_for_help.exit_code == 0
    elif words[:1] == ["make"]:
        targets = set(re.findall(r"^([a-z0-9]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
        assert set(words[1:]) <= targets


def test_the_exit_codes_of_the_page_are_those_of_the_errors() -> None:
    tree = [errors.VlaunchError]
    for kind in tree:
        tree += kind.__subclasses__()
    ours = {str(kind.exit_code) for kind in tree if kind.__module__ == errors.__name__}
    # 0 is no error; 141 is a reader that went away, told by cli.py itself.
    assert set(pages.section(CLI, "Exit codes").first_cells()) == ours | {"0", "141"}


def test_the_page_of_verbs_names_every_verb_and_every_option_and_no_other() -> None:
    ours_alone = [part for part in pages.sections(CLI) if part.heading != "`python -m trainer`"]
    named = {
        word
        for part in ours_alone
        for line in part.lines
        for word in re.findall(r"--[a-z0-9][a-z0-9-]*", line)
    }
    ours = {name for command in verbs().values() for name in options_of(command)}
    everywhere = {"--json", "--debug", "--quiet", "--version", "--help"}
    assert named == ours | everywhere
    assert [
        verb for verb in VERBS if f"`vlaunch {verb}`" not in {s.heading for s in pages.sections(CLI)}
    ] == []


def test_the_table_of_verbs_in_the_readme_is_complete() -> None:
    assert set(pages.section(REPOSITORY / "README.md", "Verbs").first_cells()) == set(VERBS)


def test_the_page_of_recipes_is_what_the_program_would_write() -> None:
    made = runpy.run_path(str(pages.DOCS / "recipes.py"))["page"]()
    assert (pages.DOCS / "recipes.md").read_text() == made, (
        "run: .venv/bin/python docs/recipes.py > docs/recipes.md"
    )


def test_the_architecture_names_every_file_once_and_no_other() -> None:
    listed = [
        f"{part.heading}{match[1]}"
        for part in pages.sections(ARCHITECTURE)
        for line in part.lines
        if part.heading.endswith("/") and (match := re.match(r"^- `([^`]+)`", line))
    ]
    there = [
        path.relative_to(REPOSITORY).as_posix()
        for room in ROOMS
        for path in (REPOSITORY / room).rglob("*")
        if path.suffix in (".py", ".yaml")
    ]
    assert sorted(listed) == sorted(there)


def test_every_page_that_the_code_points_to_is_there() -> None:
    pointed_to = {
        target
        for room in (*ROOMS, "tests")
        for path in (REPOSITORY / room).rglob("*.py")
        for target in re.findall(r"docs/[a-z]+(?:\.md|/\d{3})", path.read_text())
    }
    assert pointed_to
    assert [target for target in sorted(pointed_to) if not list(REPOSITORY.glob(f"{target}*"))] == []


def test_the_architecture_speaks_of_no_file_that_is_not_there() -> None:
    text = "\n".join(pages.prose(ARCHITECTURE))
    spoken_of = re.findall(r"`((?:launcher|trainer|serving|task_templates)/[\w/]+\.\w+)`", text)
    assert spoken_of
    assert [path for path in spoken_of if not (REPOSITORY / path).is_file()] == []


@pytest.mark.parametrize(
    ("heading", "line", "keys"),
    [
        ("Fields of a plan", ["plan", "--size", "13", "--infra", "aws"], ()),
        ("Fields of a candidate", ["plan", "--size", "13", "--infra", "aws"], ("candidates", 0)),
        ("Fields of a worker's plan", ["plan", "--serve", "--gpus", "A100"], ()),
        ("Fields of a doctor's report", ["doctor"], ()),
        ("Fields of an error", ["status"], ("error",)),
    ],
)
def test_the_fields_of_the_page_are_those_of_the_answer(
    vlaunch: Callable[..., Ran], heading: str, line: list[str], keys: tuple[str | int, ...]
) -> None:
    answer = vlaunch(*line, "--json").json
    for key in keys:
        answer = answer[key]
    assert set(pages.section(CLI, heading).first_cells()) == set(answer) - {"version"}
