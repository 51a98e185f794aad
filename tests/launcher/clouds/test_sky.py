"""What SkyPilot raises and prints, as a user of vlaunch sees it. Whole runs on it are in tests/e2e."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import pytest

from launcher.clouds.sky import _sky
from launcher.errors import NotReady, VlaunchError

if find_spec("sky") is None:
    pytest.skip("SkyPilot is not installed: vlaunch[sky]", allow_module_level=True)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("NoCloudAccessError", NotReady, ["has no cloud to use", "sky check"]),
        ("CloudUserIdentityError", NotReady, ["credentials have expired", "sky check"]),
        ("ResourcesUnavailableError", NotReady, ["no machine could be had", "quota"]),
        ("PermissionDeniedError", NotReady, ["refuses", "sky api login"]),
        ("ClusterSetUpError", VlaunchError, ["SkyPilot failed", "--debug"]),
    ],
)
def test_an_error_of_skypilot_is_one_sentence_and_what_to_do(
    name: str, kind: type[VlaunchError], words: list[str]
) -> None:
    with pytest.raises(kind) as caught, _sky():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from sky import exceptions
        raise getattr(exceptions, name)("credentials have expired\n  since yesterday")

    told = f"{caught.value.message} {caught.value.hint}"
    assert all(word in told for word in words) and "\n" not in told
    assert caught.value.exit_code == kind.exit_code


def test_what_skypilot_prints_is_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    with _sky():
        print("starting a local server")

    assert capsys.readouterr() == ("", "starting a local server\n")


def test_our_own_errors_pass_through_as_they_are() -> None:
    with pytest.raises(NotReady, match="^mine$"), _sky():
        raise NotReady("mine")
