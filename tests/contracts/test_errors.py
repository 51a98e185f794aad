"""One place turns errors into text and an exit code: the same form everywhere, and no traceback unasked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.conftest import Ran

SMALL = [sys.executable, "-m", "tests.contracts.small"]


@pytest.mark.parametrize(
    ("how", "code", "text"),
    [
        ("usage", 2, "Error: no such thing\nHint: try another\n"),
        ("not-ready", 3, "Error: reading Parquet needs pyarrow\nHint: pip install 'vlaunch[data]'\n"),
        ("remote", 4, "Error: the job failed\n"),
        ("limit", 5, "Error: the budget of $3 is used up\n"),
        ("preempted", 75, "Error: resume me\n"),
        ("interrupted", 130, "Error: stopped by Ctrl-C\n"),
        ("control-c", 130, "Error: interrupted\n"),
        ("store", 1, "Error: the store is read-only\n"),
        ("file", 1, "Error: /nowhere/x.json: No such file or directory\n"),
        ("bug", 1, "Error: unexpected KeyError: 'somewhere'\nHint: rerun with --debug for the traceback\n"),
    ],
)
def test_every_kind_of_error_has_its_exit_code_and_one_form(
    small: Callable[..., Ran], how: str, code: int, text: str
) -> None:
    assert small("fail", how) == Ran(code, "", text)


@pytest.mark.parametrize("line", [["--debug", "fail", "bug"], ["fail", "bug", "--debug"]])
def test_debug_adds_the_traceback(small: Callable[..., Ran], line: list[str]) -> None:
    ran = small(*line)
    assert ran.code == 1
    assert "Traceback (most recent call last)" in ran.err
    assert ran.err.endswith("Hint: rerun with --debug for the traceback\n")


@pytest.mark.parametrize("line", [["--json", "fail", "usage"], ["fail", "usage", "--json"]])
def test_with_json_an_error_is_an_object_on_stdout_too(small: Callable[..., Ran], line: list[str]) -> None:
    ran = small(*line)
    assert ran.json == {
        "version": 1,
        "error": {"type": "UsageError", "message": "no such thing", "hint": "try another", "exit_code": 2},
    }
    assert ran.out.count("\n") == 1
    assert ran.err == "Error: no such thing\nHint: try another\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["show", "--deadline"], "option '--deadline' requires an argument"),
        (
            ["show", "--deadline", "30"],
            "invalid value for '--deadline': '30' has no unit; write 30s, 30m or 30h",
        ),
        (["show", "extra"], "got unexpected extra argument (extra)"),
        (["fail"], "missing argument '{usage|not-ready|"),
        (["nothing"], "vlaunch has no verb 'nothing'"),
        (["data", "statz"], "vlaunch data has no verb 'statz'"),
        (["--nothing"], "no option --nothing"),
    ],
)
def test_usage_errors_have_the_same_form_and_a_hint(
    small: Callable[..., Ran], line: list[str], message: str
) -> None:
    for words in (line, ["--json", *line]):
        ran = small(*words)
        error, hint = ran.err.splitlines()
        assert ran.code == 2
        assert error.startswith(f"Error: {message}")
        assert hint.startswith("Hint: ")
    assert ran.json["error"]["message"].startswith(message)


def test_a_flag_that_comes_too_late_for_the_parser_still_means_json(small: Callable[..., Ran]) -> None:
    assert small("show", "--bogus", "--json").json["error"]["exit_code"] == 2


def test_quiet_silences_the_conversation_and_not_the_answer(small: Callable[..., Ran]) -> None:
    assert small("show") == Ran(0, "shown\n", "showing\n")
    assert small("show", "--quiet") == small("--quiet", "show") == Ran(0, "shown\n", "")


def test_a_reader_that_goes_away_is_no_error() -> None:
    with subprocess.Popen([*SMALL, "flood"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None and program.stderr is not None
        program.stdout.readline()
        program.stdout.close()
        said = program.stderr.read()
    assert said == b""
    assert program.returncode == 128 + signal.SIGPIPE


def test_a_broken_pipe_to_somewhere_else_is_an_error(small: Callable[..., Ran]) -> None:
    ran = small("fail", "pipe")
    assert ran.code == 1
    assert ran.err.startswith("Error: unexpected BrokenPipeError")


def test_control_c_in_a_real_program_gives_130_and_no_traceback() -> None:
    with subprocess.Popen([*SMALL, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None and program.stderr is not None
        assert program.stdout.readline() == b"waiting\n"
        os.kill(program.pid, signal.SIGINT)
        said = program.stderr.read()
    assert (program.returncode, said) == (130, b"Error: interrupted\n")
