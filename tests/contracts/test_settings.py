"""flag > VLAUNCH_<OPTION> > ./vlaunch.toml > user's config.toml > default; and nothing unknown is ignored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ran

Small = Callable[..., Ran]


@pytest.fixture
def project() -> Callable[[str], None]:
    return lambda text: _write(Path("vlaunch.toml"), text)


@pytest.fixture
def user(isolated: Path) -> Callable[[str], None]:
    return lambda text: _write(isolated / "config/vlaunch/config.toml", text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_each_source_wins_over_those_after_it(
    small: Small, project: Callable[[str], None], user: Callable[[str], None], isolated: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def seen(*flags: str) -> tuple[str, str]:
        answer = small("show", "--json", *flags).json
        return answer["values"]["store"], answer["sources"]["store"]

    assert seen() == (f"file://{isolated}/data/vlaunch/store", "default")
    user('store = "s3://user"')
    assert seen() == ("s3://user", f"{isolated}/config/vlaunch/config.toml")
    user('store = "s3://user"\n[show]\nstore = "s3://user-show"')
    assert seen()[0] == "s3://user-show"
    project('store = "s3://project"')
    assert seen() == ("s3://project", "./vlaunch.toml")
    project('store = "s3://project"\n[show]\nstore = "s3://project-show"')
    assert seen()[0] == "s3://project-show"
    monkeypatch.setenv("VLAUNCH_STORE", "s3://variable")
    assert seen() == ("s3://variable", "VLAUNCH_STORE")
    assert seen("--store", "s3://flag") == ("s3://flag", "command line")


def test_values_keep_their_types_from_every_source(
    small: Small, project: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    project(
        'infra = ["aws/us-east-1", "gcp"]\ndeadline = "1h30m"\nspot = true\n'
        'data = "one.jsonl"\n[show.set]\nlearning_rate = 1e-5\nname = "x y"\npacked = true\n'
    )
    values = small("show", "--json").json["values"]
    assert values["infra"] == ["aws/us-east-1", "gcp"]
    assert values["deadline"] == 5400.0
    assert values["spot"] is True
    assert values["data"] == ["one.jsonl"]
    assert values["set_fields"] == ["learning_rate=1e-05", "name=x y", "packed=true"]
    monkeypatch.setenv("VLAUNCH_INFRA", "slurm/a/gpu,local")
    monkeypatch.setenv("VLAUNCH_SPOT", "0")
    values = small("show", "--json").json["values"]
    assert values["infra"] == ["slurm/a/gpu", "local"]
    assert values["spot"] is False
    assert small("show", "--json", "--spot").json["values"]["spot"] is True


def test_a_table_of_a_part_wins_over_that_of_its_verb(small: Small, project: Callable[[str], None]) -> None:
    project("[data]\ntop = 3")
    assert small("data", "stats", "--json").json["values"] == {"top": 3}
    project("[data]\ntop = 3\n[data.stats]\ntop = 4")
    assert small("data", "stats", "--json").json["values"] == {"top": 4}


def test_a_table_named_as_an_option_is_the_verbs(small: Small, project: Callable[[str], None]) -> None:
    """--data is an option of one verb, data is another verb."""
    project("[data]\ntop = 3")
    assert small("show", "--json").json["values"]["data"] == []


@pytest.mark.parametrize(
    ("text", "error", "hint"),
    [
        ("stor = 1", "unknown setting 'stor' in ./vlaunch.toml", "did you mean store?"),
        ("[show]\nspto = true", "unknown setting 'spto' in [show] of ./vlaunch.toml", "did you mean spot?"),
        ("[shwo]\nspot = true", "unknown setting 'shwo' in ./vlaunch.toml", "did you mean show?"),
        ("show = 3", "unknown setting 'show' in ./vlaunch.toml", "it is a table: [show]"),
        ("[show]\nonly-here = 3", "unknown setting 'only-here' in [show] of", "vlaunch show --help lists"),
        ("spot = 'yes'", "spot in ./vlaunch.toml must be true or false, not yes", None),
        ("store = ['a', 'b']", 'store in ./vlaunch.toml must be one value, not ["a", "b"]', None),
        ("infra = [['a']]", 'infra in ./vlaunch.toml must be a list of values, not [["a"]]', None),
        (
            "deadline = 30",
            "invalid value for deadline in ./vlaunch.toml: '30' has no unit",
            "vlaunch show --help",
        ),
        ("store = ", "./vlaunch.toml is not valid TOML: Invalid value (at end of document)", "correct it: /"),
    ],
)
def test_a_bad_file_is_refused_by_name(
    small: Small, project: Callable[[str], None], text: str, error: str, hint: str | None
) -> None:
    project(text)
    ran = small("show")
    assert ran.code == 2
    assert ran.out == ""
    lines = ran.err.splitlines()
    assert lines[0].startswith(f"Error: {error}")
    assert (lines[1] if hint else None) is None or lines[1].startswith(f"Hint: {hint}")


def test_a_key_at_the_top_is_for_those_verbs_that_have_it(
    small: Small, project: Callable[[str], None]
) -> None:
    project("only-here = 5")
    assert small("show").code == 0
    assert small("other", "--json").json["values"] == {"only_here": 5}


def test_another_verbs_table_is_no_concern_of_this_one(small: Small, project: Callable[[str], None]) -> None:
    project("[other]\nwrong = 5")
    assert small("show").code == 0
    assert small("other").code == 2


def test_a_bad_variable_is_refused_by_name(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLAUNCH_DEADLINE", "soon")
    ran = small("show")
    assert ran.code == 2
    assert ran.err.startswith("Error: invalid value for VLAUNCH_DEADLINE: 'soon' is no duration")


def test_global_flags_are_settings_too(
    small: Small, project: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    project("quiet = true")
    assert small("show").err == ""
    monkeypatch.setenv("VLAUNCH_JSON", "1")
    assert small("show").json["version"] == 1
    assert small("fail", "usage").json["error"]["exit_code"] == 2


def test_a_relative_xdg_path_is_ignored_as_the_specification_says(
    small: Small, isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "data")
    assert small("show", "--json").json["values"]["store"] == f"file://{isolated}/.local/share/vlaunch/store"
