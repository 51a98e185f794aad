"""What sending and fetching files costs: vlaunch's S3 store, boto3 well tuned, and `aws s3 sync`, side by side.

    python tests/benchmarks/stores.py [--repeat 3] [--aws PATH_OF_AWS] [--json FILE]

Against a server over TLS that throws everything away (null_s3.py), so the client is what is measured. Files lie in
/dev/shm and are sent four at a time. CPU seconds are those of the client's process alone, with start-up and imports
(about 0.5 s) taken off by a run with one file of a byte; memory is the largest resident size above that run's.

Tuned boto3: TransferConfig(64 MiB parts, 4 threads), CRC32C by awscrt, 4 files at once, 32 connections.
`aws` is as pip gives it, with its defaults: python -m venv /tmp/aws && /tmp/aws/bin/pip install awscli. Without it,
its rows are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

MIB = 1 << 20
SETS = {"64 x 32 MiB": (64, 32 * MIB), "8 x 256 MiB": (8, 256 * MIB)}
AT_ONCE = 4


@dataclass(frozen=True)
class Cost:
    """Of one transfer of one set by one client."""

    seconds: float
    cpu_s: float
    peak_mib: float


def vlaunch(direction: str, paths: list[Path]) -> None:
    from trainer.artifacts.s3 import S3Store

    store = S3Store("s3://bucket/run")
    move = store.put_file if direction == "up" else store.get_file
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda path: move(path.name, path), paths))


def boto3_tuned(direction: str, paths: list[Path]) -> None:
    import boto3
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config

    client = boto3.client("s3", config=Config(max_pool_connections=32))
    tuned = TransferConfig(
        multipart_threshold=64 * MIB,
        multipart_chunksize=64 * MIB,
        max_concurrency=4,
        io_chunksize=MIB,
        preferred_transfer_client="classic",
    )

    def move(path: Path) -> None:
        if direction == "up":
            extra = {"ChecksumAlgorithm": "CRC32C"}
            client.upload_file(str(path), "bucket", path.name, ExtraArgs=extra, Config=tuned)
        else:
            client.download_file("bucket", path.name, str(path), Config=tuned)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(move, paths))


CLIENTS: dict[str, Callable[[str, list[Path]], None]] = {"vlaunch": vlaunch, "boto3 tuned": boto3_tuned}


@contextmanager
def null_server(folder: Path) -> Iterator[dict[str, str]]:
    """The environment with which every client finds it and trusts it."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
            ),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    command = [sys.executable, str(Path(__file__).with_name("null_s3.py")), str(certificate), str(key)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        try:
            yield {
                "AWS_ENDPOINT_URL": f"https://127.0.0.1:{int(server.stdout.readline())}",
                "AWS_CA_BUNDLE": str(certificate),
                "AWS_ACCESS_KEY_ID": "id",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            server.kill()


def measured(command: list[str], environment: dict[str, str]) -> Cost:
    """Run a program to its end."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{command[0]} failed"
    return Cost(time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def command_of(client: str, direction: str, folder: Path, aws: str) -> list[str]:
    if client == "aws s3 sync":
        return [aws, "s3", "sync", "--only-show-errors", str(folder), "s3://bucket/run"]
    return [sys.executable, __file__, "--move", client, direction, str(folder)]


def compare(folder: Path, aws: str | None, repeat: int) -> Iterator[dict[str, object]]:
    clients = [*CLIENTS, *(["aws s3 sync"] if aws else [])]
    nothing = folder / "nothing"
    nothing.mkdir()
    (nothing / "w-0-1").write_bytes(b"x")
    with null_server(folder) as environment:
        idle = {
            client: measured(command_of(client, "up", nothing, aws or ""), environment) for client in clients
        }
        for name, (count, size) in SETS.items():
            files = folder / name.replace(" ", "")
            files.mkdir()
            for number in range(count):
                write_random(files / f"w-{number}-{size}", size)
            for direction in ("up", "down"):
                for _ in range(repeat):  # in turn, so that a busy moment meets all of them
                    for client in clients:
                        if client == "aws s3 sync" and direction == "down":
                            continue  # it lists first, and the server lists nothing
                        cost = measured(command_of(client, direction, files, aws or ""), environment)
                        yield {
                            "set": name,
                            "direction": direction,
                            "client": client,
                            "mb_per_s": count * size / 1e6 / (cost.seconds - idle[client].seconds),
                            "cpu_s_per_gb": (cost.cpu_s - idle[client].cpu_s) / (count * size / 1e9),
                            "extra_mib": cost.peak_mib - idle[client].peak_mib,
                        }
            for path in files.iterdir():
                path.unlink()


def write_random(path: Path, size: int) -> None:
    """In pieces: the memory of this process counts as that of every program it starts."""
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--aws", help="the program aws, version 1")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--move", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.move:
        client, direction, folder = asked.move
        return CLIENTS[client](direction, sorted(Path(folder).iterdir()))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        rows = list(compare(Path(folder), asked.aws, asked.repeat))
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))
    report(rows, asked.repeat)


def report(rows: list[dict[str, object]], repeat: int) -> None:
    """Medians; and ratios of the quietest turns, since other programs only ever make a turn longer."""
    turns: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for row in rows:
        key = tuple(str(row[name]) for name in ("set", "direction", "client"))
        for figure in ("mb_per_s", "cpu_s_per_gb", "extra_mib"):
            turns.setdefault(key, {}).setdefault(figure, []).append(float(str(row[figure])))
    print(f"{'':<32} {'MB/s':>8} {'CPU s/GB':>9} {'MiB more':>9}   (medians of {repeat})")
    for key, figures in turns.items():
        speed, cpu, memory = (statistics.median(values) for values in figures.values())
        print(f"{key[0]:<12} {key[1]:<5} {key[2]:<13} {speed:>8.0f} {cpu:>9.2f} {memory:>9.0f}")
    for (name, direction, client), figures in turns.items():
        if client != "vlaunch":
            ours = turns[name, direction, "vlaunch"]
            speed = max(ours["mb_per_s"]) / max(figures["mb_per_s"])
            cpu = min(ours["cpu_s_per_gb"]) / min(figures["cpu_s_per_gb"])
            print(
                f"{name}, {direction}: {speed:.2f} times the MB/s of {client}, {cpu:.2f} times its CPU s per GB"
            )


if __name__ == "__main__":
    main()
