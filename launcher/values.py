"""Values that people type: they become types at once, and print back as they were written.

Pure and without click, so that plan, render and costs can use them too. `parse` raises ValueError with a
sentence that says what to write instead; options.py turns that into a usage error that names the flag.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_NUMBER = r"\d+(?:\.\d+)?"
_DURATION = re.compile("".join(f"(?:(?P<{unit}>{_NUMBER}){unit})?" for unit in SECONDS))

# SkyPilot 0.14.1's clouds (sky/clouds), and ours: "local" is this machine.
CLOUDS = (
    "local aws azure cudo do fluidstack gcp hyperbolic ibm kubernetes lambda mithril nebius oci paperspace "
    "primeintellect runpod scp seeweb shadeform slurm ssh vast vsphere"
).split()
STORE_SCHEMES = ("file", "s3", "gs", "s3+single-writer")


class Duration(float):
    """Seconds. Duration.parse("1h30m") == 5400.0, and str() of it is "1h30m" again."""

    text: str

    def __new__(cls, seconds: float, text: str | None = None) -> Duration:
        self = super().__new__(cls, seconds)
        self.text = text if text is not None else format_seconds(seconds)
        return self

    @classmethod
    def parse(cls, text: str) -> Duration:
        stripped = text.strip().lower()
        if stripped == "0":  # the one number that needs no unit
            return cls(0.0, "0")
        match = _DURATION.fullmatch(stripped)
        if match is None or not stripped:
            if re.fullmatch(_NUMBER, stripped):
                raise ValueError(f"{text!r} has no unit; write {stripped}s, {stripped}m or {stripped}h")
            raise ValueError(f"{text!r} is no duration; write for example 40s, 30m, 24h or 1h30m")
        seconds = sum(float(number) * SECONDS[unit] for unit, number in match.groupdict().items() if number)
        return cls(seconds, stripped)

    def __str__(self) -> str:
        return self.text


def format_seconds(seconds: float) -> str:
    """5400 -> "1h30m", 0.5 -> "0.5s"; what Duration.parse reads back, to a millisecond."""
    if seconds == 0:
        return "0"
    rest, text = round(abs(seconds), 3), ""
    for unit, size in SECONDS.items():
        number, rest = (rest, 0.0) if unit == "s" else divmod(rest, size)
        if number:
            text += f"{round(number, 3):.12g}{unit}"
    return ("-" if seconds < 0 else "") + (text or "0s")


class Dollars(float):
    """US dollars: "300", "$300" and "$12.50" are read, "$300" and "$12.50" are printed."""

    @classmethod
    def parse(cls, text: str) -> Dollars:
        if not re.fullmatch(rf"\$?{_NUMBER}", text.strip()):
            raise ValueError(f"{text!r} is no amount of dollars; write for example 300 or 12.50")
        return cls(text.strip().removeprefix("$"))

    def __str__(self) -> str:
        amount = f"{abs(self):,.2f}".removesuffix(".00")
        return f"{'-' if self < 0 else ''}${amount}"


class PreemptEvery(NamedTuple):
    """A machine is taken `every` seconds, moved by up to `jitter` either way: "40s,5s"."""

    every: Duration
    jitter: Duration

    @classmethod
    def parse(cls, text: str) -> PreemptEvery:
        first, _, second = text.partition(",")
        value = cls(Duration.parse(first), Duration.parse(second or "0"))
        if value.every <= 0:
            raise ValueError("the interval must be longer than 0s; leave the option out for no preemptions")
        if value.jitter >= value.every:
            raise ValueError(
                f"the jitter of {value.jitter} must be shorter than the interval of {value.every}"
            )
        return value

    def __str__(self) -> str:
        return f"{self.every},{self.jitter}" if self.jitter else str(self.every)


class KeyValue(NamedTuple):
    """A field of the configuration and its new value, as text: "learning_rate=1e-5"."""

    key: str
    value: str

    @classmethod
    def parse(cls, text: str) -> KeyValue:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r} has no '='; write key=value, for example learning_rate=1e-5")
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", key.strip()):
            raise ValueError(
                f"{key!r} is no name of a field; write key=value, for example learning_rate=1e-5"
            )
        return cls(key.strip(), value)

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


class Infra(NamedTuple):
    """Where machines may come from: "local", "aws", "aws/us-east-1", "slurm/CLUSTER/PARTITION"."""

    cloud: str
    region: str | None = None
    zone: str | None = None

    @classmethod
    def parse(cls, text: str) -> Infra:
        cloud, *places = text.strip().split("/")
        cloud = {"k8s": "kubernetes"}.get(cloud.lower(), cloud.lower())
        if cloud not in CLOUDS:
            raise ValueError(f"{text!r} names no known cloud{_suggest(cloud, CLOUDS)}")
        if len(places) > 2 or not all(places):
            raise ValueError(f"{text!r} is not CLOUD[/REGION[/ZONE]], for example aws/us-east-1")
        return cls(cloud, *(None if place == "*" else place for place in places))

    def __str__(self) -> str:
        return "/".join([self.cloud, *(place or "*" for place in self[1:] if place or self.zone)])


class Gpus(NamedTuple):
    """Accelerators of one node: "A100-80GB:8"; "A10" is one of them."""

    name: str
    number: int = 1

    @classmethod
    def parse(cls, text: str) -> Gpus:
        match = re.fullmatch(r"([A-Za-z][\w.-]*)(?::(\d+))?", text.strip())
        if match is None or match[2] == "0":
            raise ValueError(f"{text!r} is not NAME[:COUNT], for example A100-80GB:8")
        return cls(match[1], int(match[2] or 1))

    def __str__(self) -> str:
        return f"{self.name}:{self.number}"


def parse_store_uri(text: str) -> str:
    """A store as one absolute URI: s3://..., gs://..., file:///...; a plain path becomes file:///..."""
    scheme, separator, rest = text.strip().partition("://")
    if not separator:
        if not text.strip():
            raise ValueError("an empty store; write a folder, file:///..., s3://... or gs://...")
        from pathlib import Path

        # as_uri: a space is written %20, as the store does when it names itself.
        return Path(os.path.abspath(os.path.expanduser(text.strip()))).as_uri()
    if scheme not in STORE_SCHEMES:
        raise ValueError(f"{text!r}: no store is reached by {scheme}://{_suggest(scheme, STORE_SCHEMES)}")
    if scheme != "file" and set(rest.partition("/")[0]) & set(":@"):  # before anything repeats it
        raise ValueError("a store's URI holds no credentials; give them as docs/stores.md says")
    if scheme == "file" and not rest.startswith("/"):
        raise ValueError(f"{text!r} is not absolute; write file:///{rest} or a plain path")
    if not rest.strip("/"):
        raise ValueError(f"{text!r} names no {'folder' if scheme == 'file' else 'bucket'}")
    return text.strip().rstrip("/")


def _suggest(word: str, names: tuple[str, ...] | list[str]) -> str:
    from launcher.errors import nearest

    close = nearest(word, names)
    return f"; did you mean {close}?" if close else f"; known are {', '.join(names)}"
