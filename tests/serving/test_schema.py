"""schemathesis against the API's own document: whatever it can make up, nothing of it is a failure of the server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.stack import Stack, wait_until

pytest.importorskip("schemathesis", reason="pip install schemathesis")

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_no_request_that_the_document_allows_or_forbids_is_a_server_error(
    service: Stack, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        f"{service.url}/openapi.json",
        "--checks",
        CHECKS,
    ]
    done = subprocess.run(
        [*command, "--max-examples", "25", "--no-color"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    wait_until(service.idle)
