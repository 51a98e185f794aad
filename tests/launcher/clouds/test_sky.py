"""What SkyPilot raises and prints, as a user of vlaunch sees it. Whole runs on it are in tests/e2e."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import pytest

from launcher.clouds.sky_api import _no_access, sdk
from launcher.errors import NotReady, VlaunchError

if find_spec("sky") is None:
    pytest.skip("SkyPilot is not installed: vlaunch[sky]", allow_module_level=True)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("NoCloudAccessError", NotReady, ["has no cloud to use", "sky check"]),
        ("InvalidCloudCredentials", NotReady, ["does not accept", "sky api stop"]),
        ("CloudUserIdentityError", NotReady, ["credentials have expired", "sky check"]),
        ("ResourcesUnavailableError", NotReady, ["no machine could be had", "quota"]),
        ("PermissionDeniedError", NotReady, ["refuses", "sky api login"]),
        ("ClusterSetUpError", VlaunchError, ["SkyPilot failed", "--debug"]),
    ],
)
def test_an_error_of_skypilot_is_one_sentence_and_what_to_do(
    name: str, kind: type[VlaunchError], words: list[str]
) -> None:
    with pytest.raises(kind) as caught, sdk():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from sky import exceptions
        raise getattr(exceptions, name)("credentials have expired\n  since yesterday")

    told = f"{caught.value.message} {caught.value.hint}"
    assert all(word in told for word in words) and "\n" not in told
    assert caught.value.exit_code == kind.exit_code


def test_what_skypilot_prints_is_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    with sdk():
        print("starting a local server")

    assert capsys.readouterr() == ("", "starting a local server\n")


def test_our_own_errors_pass_through_as_they_are() -> None:
    with pytest.raises(NotReady, match="^mine$"), sdk():
        raise NotReady("mine")


# What SkyPilot 0.14.1 raised and printed where AWS answered with ExpiredToken.
LAUNCH = "Failed to describe key pairs.\nError code: \x1b[1mExpiredToken\x1b[0m"
CHECK = """\
Checking credentials to enable infra for SkyPilot.
\x1b[2m  AWS: disabled \x1b[0m\x1b[0m
    Reason [compute, storage]: Failed to access AWS services with credentials. Make sure that the access and secret \
keys are correct. Run the following commands:
      $ aws configure
    Details: `aws sts get-caller-identity` failed with error: [botocore.exceptions.ClientError] An error occurred \
(ExpiredToken) when calling the GetCallerIdentity operation: The security token included in the request is expired.
\x1b[2m  GCP: disabled \x1b[0m\x1b[0m
    Reason [compute, storage]: GCP tools are not installed. Run the following commands:
      $ pip install skypilot[gcp]

\x1b[32mEnabled infra\x1b[0m
  No infra to check/enabled.
"""


def test_expired_credentials_are_told_from_a_machine_that_is_not_to_be_had() -> None:
    with pytest.raises(NotReady) as caught, sdk() as sky:
        raise sky.exceptions.ResourcesUnavailableError(
            f"Failed to provision on cloud AWS due to invalid cloud credentials: {LAUNCH}"
        )

    assert "does not accept SkyPilot's credentials" in caught.value.message
    assert "\n" not in caught.value.message and "\x1b" not in caught.value.message
    assert caught.value.hint is not None and "sky api stop; sky api start" in caught.value.hint


def test_what_keeps_a_cloud_from_being_used_is_told_in_its_own_words() -> None:
    aws, gcp, slurm = (_no_access(cloud, CHECK) for cloud in ("aws", "gcp", "slurm"))

    assert aws.what == "the credentials of aws have expired or are not accepted (ExpiredToken)"
    assert "aws sso login" in aws.fix
    assert gcp.what == "SkyPilot cannot use gcp: GCP tools are not installed"
    assert slurm.what == "SkyPilot cannot use slurm"


def test_a_server_that_does_not_start_is_told_with_the_file_that_says_why() -> None:
    with pytest.raises(NotReady) as caught, sdk():
        raise RuntimeError("SkyPilot API server process exited unexpectedly.\nView logs at: ~/.sky/x")

    assert caught.value.hint is not None and "server.log" in caught.value.hint
