"""`--help` of every verb works, leads with two examples and loads nothing of weight."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

import click
import pytest

from launcher.cli import OTHER_WORDS, VERBS, root
from tests.conftest import Ran

HEAVY = {"torch", "transformers", "sky", "pydantic", "yaml", "rich", "numpy", "pyarrow", "plotext", "pathlib"}
SHOW_MODULES = """
import sys
from launcher.cli import main
code = main(sys.argv[1:])
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""


def command_lines(group: click.Group, *path: str) -> list[tuple[str, ...]]:
    """The words of every verb, and of every part of a verb, that this checkout has."""
    found: list[tuple[str, ...]] = []
    for name in group.list_commands(click.Context(group)):
        if group is root and find_spec(VERBS[name][0]) is None:
            continue
        found.append((*path, name))
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            found += command_lines(command, *path, name)
    return found


def help_of(*words: str) -> tuple[Ran, set[str]]:
    """What a fresh program prints for --help, and the modules that it had loaded."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW_MODULES, *words, "--help"], capture_output=True, text=True, timeout=60
    )
    return Ran(done.returncode, done.stdout, done.stderr), set(done.stderr.split())


def test_every_verb_of_the_table_is_in_this_version() -> None:
    assert [name for name, (module, _) in VERBS.items() if find_spec(module) is None] == []


@pytest.mark.parametrize("words", [(), *command_lines(root)], ids=lambda words: " ".join(words) or "vlaunch")
def test_help_leads_with_two_examples_and_loads_nothing_heavy(words: tuple[str, ...]) -> None:
    shown, modules = help_of(*words)
    assert shown.code == 0, shown.err
    assert not HEAVY & modules
    first, *rest = shown.out.splitlines()
    examples = rest[: rest.index("")]
    assert first == "Examples:"
    assert len(examples) >= 2
    assert sum(" ".join(["vlaunch", *words]) in example for example in examples) >= 2, examples
    assert max(map(len, shown.out.splitlines())) <= 100


def test_help_of_vlaunch_loads_no_verb() -> None:
    _, modules = help_of()
    assert not any(module.startswith("launcher.commands") for module in modules)
    assert not {"importlib.metadata", "difflib", "tomllib", "dataclasses", "json"} & modules


def test_help_of_vlaunch_names_every_verb_and_fits_a_terminal(vlaunch: Callable[..., Ran]) -> None:
    lines = vlaunch("--help").out.splitlines()
    assert all(any(line.split()[:1] == [verb] for line in lines) for verb in VERBS)
    assert max(map(len, lines)) <= 88
    assert len(lines) <= 40


@pytest.mark.parametrize("words", [["help"], ["-h"], []])
def test_help_is_found_however_it_is_asked_for(vlaunch: Callable[..., Ran], words: list[str]) -> None:
    assert vlaunch(*words) == vlaunch("--help")


def test_help_verb_is_verb_help(vlaunch: Callable[..., Ran]) -> None:
    assert vlaunch("help", "doctor") == vlaunch("doctor", "--help") == vlaunch("doctor", "-h")


def test_help_works_with_a_broken_settings_file(vlaunch: Callable[..., Ran], isolated: object) -> None:
    with open("vlaunch.toml", "w") as file:
        file.write("this is no TOML")
    assert vlaunch("doctor", "--help").code == 0
    assert vlaunch("--help").code == 0


@pytest.mark.parametrize("line", [["--version"], ["doctor", "--version"]])
def test_version_is_that_of_the_project(vlaunch: Callable[..., Ran], line: list[str]) -> None:
    import tomllib

    from tests.conftest import REPOSITORY

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert vlaunch(*line) == Ran(0, f"vlaunch {project['version']}\n", "")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("trian", "train"), ("stauts", "status"), ("cost", "cost-report"), ("launch", "train")],
)
def test_a_mistyped_verb_is_told_the_right_one(vlaunch: Callable[..., Ran], typed: str, meant: str) -> None:
    ran = vlaunch(typed)
    assert ran == Ran(2, "", f"Error: vlaunch has no verb '{typed}'\nHint: did you mean vlaunch {meant}?\n")


def test_words_from_other_tools_lead_to_verbs_that_exist() -> None:
    assert set(OTHER_WORDS.values()) <= set(VERBS)
    assert not set(OTHER_WORDS) & set(VERBS)


def test_a_mistyped_option_is_told_the_right_one(vlaunch: Callable[..., Ran]) -> None:
    ran = vlaunch("doctor", "--stroe", "x")
    assert ran.code == 2
    assert ran.err.splitlines()[0] == "Error: no option --stroe"
    assert "did you mean --store?" in ran.err.splitlines()[1]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_calls_vlaunch(vlaunch: Callable[..., Ran], shell: str) -> None:
    ran = vlaunch("completion", shell)
    assert ran.code == 0
    assert f"_VLAUNCH_COMPLETE={shell}_complete" in ran.out


@pytest.mark.parametrize(
    ("words", "index", "expected"),
    [
        ("vlaunch co", 1, "cost-report"),
        ("vlaunch doctor --st", 2, "--store"),
        ("vlaunch completion z", 2, "zsh"),
    ],
)
def test_bash_completes_verbs_options_and_values(
    vlaunch_process: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    index: int,
    expected: str,
) -> None:
    with open("vlaunch.toml", "w") as file:
        file.write("broken")  # a TAB is no moment for errors
    monkeypatch.setenv("_VLAUNCH_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(index))
    ran = vlaunch_process()
    assert f"plain,{expected}" in ran.out.splitlines()
    assert ran.err == ""
