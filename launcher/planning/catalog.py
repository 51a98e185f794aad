"""What machines cost, zone by zone, without network or account: SkyPilot's own catalog files where they are.

SkyPilot keeps one table for each cloud in ~/.sky/catalogs/v8/CLOUD/vms.csv and renews it every few hours. A cloud
without such a file is looked up in launcher/planning/prices/, a small dated excerpt in the same form. Both are
snapshots: spot prices move by a few per cent a week, so whatever rests on a price carries its source and date.

Cost: a search for the accelerator's name through the asked clouds' files; 100,000 rows take some 10 ms.
"""

from __future__ import annotations

import csv
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

from launcher.errors import NotReady, UsageError, nearest
from launcher.values import Gpus, Infra

SKYPILOT_FOLDER = Path(".sky/catalogs/v8")
"""Below the home folder; SkyPilot 0.14.1, catalog/common.py."""
# From github.com/skypilot-org/skypilot-catalog: the cheapest zone of each region for some kinds of machines.
PACKAGED = Path(__file__).parent / "prices"
PACKAGED_SOURCE = "SkyPilot catalog v8, commits 00148f2a and 006059e0"
PACKAGED_DATE = "late 2025"

# Machines of one's own: no price, and SkyPilot has no list of their places here.
OWN = ("kubernetes", "slurm", "ssh", "vsphere")
# SkyPilot 0.14.1, clouds/*.py: those that name SPOT_INSTANCE among the features they lack. Kubernetes has spot
# where its cloud does.
NO_SPOT = (
    "cudo do fluidstack hyperbolic lambda local paperspace scp seeweb shadeform slurm ssh vsphere"
).split()

# What SkyPilot takes for `cpus: 2+`: its default families (catalog/aws_catalog.py and gcp_catalog.py); of other clouds
# the cheapest with as many cores.
_LEAST_CORES = 2
_CPU_MACHINES = {"aws": "m6i.large", "gcp": "n2-standard-2", "azure": "Standard_D2s_v5"}

# GCP sells an accelerator and its host apart. Hosts: gcp_catalog.py, _ACC_INSTANCE_TYPE_DICTS and _NUM_ACC_TO_NUM_CPU.
_GCP_HOSTS = {
    "A100": "a2-highgpu-{n}g",
    "A100-80GB": "a2-ultragpu-{n}g",
    "H100": "a3-highgpu-{n}g",
    "H200": "a3-ultragpu-{n}g",
    "B200": "a4-highgpu-{n}g",
}
_GCP_L4_HOSTS = {1: "g2-standard-4", 2: "g2-standard-24", 4: "g2-standard-48", 8: "g2-standard-96"}
_GCP_CORES = {"T4": {1: 4, 2: 8, 4: 48}, "K80": {1: 4, 2: 8, 4: 16, 8: 32}}
_GCP_CORES_ELSE = {1: 8, 2: 16, 4: 32, 8: 64}


class Source(NamedTuple):
    """Where prices are from, and of when."""

    name: str
    date: str

    def __str__(self) -> str:
        return f"{self.name}, {self.date}"


@dataclass(frozen=True, slots=True)
class Offer:
    """One kind of machine in one zone, in USD per hour with its accelerators."""

    cloud: str
    region: str
    zone: str
    instance: str
    accelerator: str
    """SkyPilot name and count; "" is a machine without one."""
    on_demand: float | None
    spot: float | None
    """None where the zone has none."""
    source: Source


class _Row(NamedTuple):
    instance: str
    accelerator: str
    cards: int
    region: str
    zone: str
    """Empty where the cloud has no zones."""
    price: float | None
    spot: float | None
    cores: float


class Catalog:
    """Prices from one folder of SkyPilot's, and from the package for clouds that have no file there."""

    def __init__(self, folder: Path | None = None) -> None:
        """None is SkyPilot's own folder; a folder that was named must exist.

        Raises:
            UsageError: the named folder is no catalog.
        """
        self.folder = folder or Path.home() / SKYPILOT_FOLDER
        if folder is not None and not any(folder.glob("*/vms.csv")):
            raise UsageError(
                f"{folder} is no catalog: it has no CLOUD/vms.csv",
                hint=f"SkyPilot's is ~/{SKYPILOT_FOLDER}; without --catalog the package's own prices stand in",
            )

    def clouds(self) -> list[str]:
        """Those with prices."""
        files = [*PACKAGED.glob("*/vms.csv"), *self.folder.glob("*/vms.csv")]
        return sorted({path.parent.name for path in files})

    def offers(self, infra: Infra, gpus: Gpus | None) -> list[Offer]:
        """The cheapest machine of each zone of a cloud that has these accelerators; without any, a small one.

        A cloud that sells a card by eight alone offers eight for four, at their full price.

        Raises:
            UsageError: the cloud has no such region or zone, with the nearest.
            NotReady: no prices of this cloud are here.
        """
        path, source = self._file(infra.cloud)
        rows = list(_rows(path, f",{gpus.name}," if gpus else _CPU_MACHINES.get(infra.cloud, "")))
        if infra.cloud == "gcp" and gpus:
            rows = list(_with_hosts(rows, path))
        if infra.cloud == "aws":
            rows = list(_with_zone_names(rows, path.parent))
        fitting = _enough(rows, gpus)
        here = [
            row for row in fitting if infra.region in (None, row.region) and infra.zone in (None, row.zone)
        ]
        if not here and infra.region:
            self._refuse_place(infra)
        return [
            Offer(
                infra.cloud,
                row.region,
                row.zone,
                row.instance,
                f"{row.accelerator}:{row.cards}" if gpus else "",
                row.price,
                row.spot,
                source,
            )
            for row in _cheapest_of_each_zone(here)
        ]

    def accelerators(self, clouds: Iterable[str]) -> list[str]:
        """Names that these clouds sell. Reads their whole files: for messages alone."""
        sold = (row for cloud in clouds if cloud not in OWN for row in _rows(self._file(cloud)[0], ""))
        return sorted({row.accelerator for row in sold} - {""})

    def machines(self, clouds: Iterable[str], names: Iterable[str]) -> list[tuple[str, int]]:
        """(accelerator, number on one machine) of those names that these clouds sell."""
        paths = [self._file(cloud)[0] for cloud in clouds if cloud not in OWN]
        rows = (row for path in paths for name in names for row in _rows(path, f",{name},"))
        return sorted({(row.accelerator, row.cards) for row in rows if row.cards})

    @property
    def own_source(self) -> Source:
        """Of machines that nobody sells."""
        return Source("none: a cluster of your own", "undated")

    def _file(self, cloud: str) -> tuple[Path, Source]:
        path = self.folder / cloud / "vms.csv"
        if path.is_file():
            written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            return path, Source(f"SkyPilot catalog {_shown(path)}", f"{written:%Y-%m-%d}")
        path = PACKAGED / cloud / "vms.csv"
        if path.is_file():
            return path, Source(PACKAGED_SOURCE, PACKAGED_DATE)
        raise NotReady(
            f"no prices of {cloud} are here",
            hint=f"`sky gpus list --infra {cloud}` fetches them; known are {', '.join(self.clouds())}",
        )

    def _refuse_place(self, infra: Infra) -> None:
        """Raises UsageError where the cloud has no such region or zone at all; else the card is not sold there."""
        path, _ = self._file(infra.cloud)
        rows: Sequence[_Row] = list(_rows(path, ""))
        if infra.cloud == "aws":
            rows = list(_with_zone_names(rows, path.parent))
        regions = sorted({row.region for row in rows})
        if infra.region and infra.region not in regions:
            raise _no_place(f"{infra.cloud} has no region {infra.region!r}", infra.region, regions)
        zones = sorted({row.zone for row in rows if row.region == infra.region})
        if infra.zone and infra.zone not in zones:
            raise _no_place(f"{infra.cloud}/{infra.region} has no zone {infra.zone!r}", infra.zone, zones)


def _no_place(message: str, word: str, known: Sequence[str]) -> UsageError:
    close = nearest(word, known)
    return UsageError(message, hint=f"did you mean {close}?" if close else f"known are {', '.join(known)}")


def _rows(path: Path, needle: str) -> Iterator[_Row]:
    """The rows whose text holds `needle`; the others are never looked at, which is what makes large files cheap."""
    with path.open("rb") as file, _mapped(file) as text:
        lines = (line.decode() for line in _lines(text, needle.encode()))
        header = next(csv.reader([text.readline().decode()]), [])
        missing = [name for name in _NEEDED if name not in header]
        if missing:
            raise NotReady(f"{path} has no column {missing[0]}", hint="delete it: SkyPilot fetches it again")
        for cells in csv.reader(lines):
            try:
                yield _parsed(dict(zip(header, cells, strict=True)))
            except ValueError:
                raise NotReady(
                    f"{path} has a row that cannot be read: {','.join(cells)[:80]}",
                    hint="delete the file: SkyPilot fetches it again",
                ) from None


# Clouds without zones have no AvailabilityZone, some no SpotPrice.
_NEEDED = ("InstanceType", "AcceleratorName", "AcceleratorCount", "Price", "Region")


def _mapped(file: BinaryIO) -> mmap.mmap:
    """Raises NotReady for an empty file, which cannot be mapped."""
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise NotReady(f"{file.name} is empty", hint="delete it: SkyPilot fetches it again") from None


def _lines(text: mmap.mmap, needle: bytes) -> Iterator[bytes]:
    """Lines below the header that hold the needle; all of them for an empty one."""
    end = text.find(b"\n", 0)
    while end >= 0 and (found := text.find(needle, end + 1)) >= 0:
        start = text.rfind(b"\n", 0, found) + 1 if needle else end + 1
        end = text.find(b"\n", found)
        line = text[start : end if end >= 0 else len(text)]
        if line:
            yield line


def _parsed(cells: Mapping[str, str]) -> _Row:
    return _Row(
        cells["InstanceType"],
        cells["AcceleratorName"],
        int(float(cells["AcceleratorCount"] or 0)),  # a part of a card is none
        cells["Region"],
        cells.get("AvailabilityZone", ""),
        _number(cells["Price"]),
        _number(cells.get("SpotPrice", "")),
        _number(cells.get("vCPUs", "")) or 0.0,
    )


def _number(text: str) -> float | None:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None


def _with_hosts(rows: Sequence[_Row], path: Path) -> Iterator[_Row]:
    """GCP's accelerators with the price of the machine around them; without a host in the zone, none."""
    wanted = {_gcp_host(row.accelerator, row.cards) for row in rows if not row.instance} - {""}
    hosts = {(row.instance, row.zone): row for host in wanted for row in _rows(path, f"{host},")}
    for row in rows:
        if row.instance:  # newer cards are listed with their machine
            yield row
            continue
        host = hosts.get((_gcp_host(row.accelerator, row.cards), row.zone))
        if host is not None:
            price, spot = _sum(row.price, host.price), _sum(row.spot, host.spot)
            yield row._replace(instance=host.instance, price=price, spot=spot)


def _gcp_host(accelerator: str, count: int) -> str:
    if accelerator == "L4":
        return _GCP_L4_HOSTS.get(count, "")
    if accelerator in _GCP_HOSTS:
        return _GCP_HOSTS[accelerator].format(n=count)
    cores = _GCP_CORES.get(accelerator, _GCP_CORES_ELSE).get(count)
    return f"n1-highmem-{cores}" if cores else ""


def _with_zone_names(rows: Sequence[_Row], folder: Path) -> Iterator[_Row]:
    """AWS lists zones by id (use1-az4); which name an account has for it SkyPilot writes beside the catalog."""
    mappings = sorted(folder.glob("az_mappings-*.csv"), key=lambda path: path.stat().st_mtime)
    if not mappings:
        yield from rows
        return
    with mappings[-1].open(encoding="utf-8", newline="") as lines:
        names = {row["AvailabilityZone"]: row["AvailabilityZoneName"] for row in csv.DictReader(lines)}
    for row in rows:
        if row.zone in names:  # SkyPilot leaves out the others too: the account cannot use them
            yield row._replace(zone=names[row.zone])


def _enough(rows: Sequence[_Row], gpus: Gpus | None) -> list[_Row]:
    """Rows with exactly the asked number of cards, else with the next larger one that is sold."""
    if gpus is None:
        return [row for row in rows if not row.accelerator and row.cores >= _LEAST_CORES]
    counts = sorted({row.cards for row in rows if row.accelerator == gpus.name and row.cards >= gpus.number})
    return [row for row in rows if row.accelerator == gpus.name and counts and row.cards == counts[0]]


def _cheapest_of_each_zone(rows: Sequence[_Row]) -> list[_Row]:
    best: dict[tuple[str, str], _Row] = {}
    for row in sorted(rows, key=lambda row: (_or_inf(row.spot), _or_inf(row.price), row.instance)):
        best.setdefault((row.region, row.zone), row)
    return list(best.values())


def _or_inf(price: float | None) -> float:
    return float("inf") if price is None else price


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else round(first + second, 6)


def _shown(path: Path) -> str:
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
