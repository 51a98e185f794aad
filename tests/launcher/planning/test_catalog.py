"""Prices zone by zone from SkyPilot's catalog files: what is read, what is joined, what is refused."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.errors import NotReady, UsageError
from launcher.planning.catalog import PACKAGED_DATE, SKYPILOT_FOLDER, Catalog
from launcher.values import Gpus, Infra

HERE = Path(__file__).parents[1] / "catalog"
AWS, GCP = Infra("aws"), Infra("gcp")
EIGHT = Gpus("A100-80GB", 8)


@pytest.fixture
def catalog() -> Catalog:
    return Catalog(HERE / "v8")


def test_every_zone_is_offered_with_its_own_spot_price(catalog: Catalog) -> None:
    offers = {offer.zone: offer for offer in catalog.offers(AWS, EIGHT)}
    assert len(offers) == 9
    assert (offers["euc1-az2"].spot, offers["euc1-az2"].on_demand) == (8.0274, 34.29122)
    assert offers["use1-az6"].spot == 8.6505 and offers["use1-az4"].spot == 9.9734
    assert {offer.instance for offer in offers.values()} == {"p4de.24xlarge"}


def test_gcps_accelerators_cost_what_they_and_their_host_cost(catalog: Catalog) -> None:
    offer = catalog.offers(Infra("gcp", "us-central1", "us-central1-a"), EIGHT)[0]
    assert offer.instance == "a2-ultragpu-8g"
    assert offer.on_demand == pytest.approx(14.76958 + 8.79698)
    assert offer.spot == pytest.approx(15.712 + 4.39824)


@pytest.mark.parametrize(
    ("gpus", "host"),
    [("T4:1", "n1-highmem-4"), ("V100:8", "n1-highmem-64"), ("L4:1", "g2-standard-4"), ("H100:8", "a3-highgpu-8g")],
)  # fmt: skip
def test_gcp_hosts_are_those_that_skypilot_takes(catalog: Catalog, gpus: str, host: str) -> None:
    assert {offer.instance for offer in catalog.offers(GCP, Gpus.parse(gpus))} == {host}


def test_a_cloud_that_sells_a_card_by_eight_offers_eight_for_four(catalog: Catalog) -> None:
    offers = catalog.offers(AWS, Gpus("A100-80GB", 4))
    assert {offer.accelerator for offer in offers} == {"A100-80GB:8"}
    assert catalog.offers(AWS, Gpus("A10G", 1))[0].accelerator == "A10G:1"


def test_a_zone_without_a_spot_price_has_none(catalog: Catalog) -> None:
    with (HERE / "v8/aws/vms.csv").open() as lines:
        without = [row for row in csv.DictReader(lines) if not row["SpotPrice"]]
    assert len(without) == 6
    for row in without:
        gpus = Gpus(row["AcceleratorName"], round(float(row["AcceleratorCount"])))
        here = Infra("aws", row["Region"], row["AvailabilityZone"])
        offer = catalog.offers(here, gpus)[0]
        assert (offer.spot, offer.on_demand) == (None, float(row["Price"]))


def test_without_a_file_of_its_own_a_cloud_is_priced_from_the_package_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "gcp").mkdir()
    shutil.copy(HERE / "v8/gcp/vms.csv", tmp_path / "gcp")
    catalog = Catalog(tmp_path)
    assert catalog.offers(AWS, EIGHT)[0].source.date == PACKAGED_DATE
    assert catalog.offers(GCP, EIGHT)[0].source.name.endswith("gcp/vms.csv")
    assert len(catalog.offers(GCP, EIGHT)[0].source.date) == len("2026-11-21")


def test_skypilots_own_folder_is_found_in_the_home_folder(isolated: Path) -> None:
    shutil.copytree(HERE / "v8", isolated / SKYPILOT_FOLDER)
    assert "~/.sky/catalogs/v8/aws/vms.csv" in str(Catalog().offers(AWS, EIGHT)[0].source)


def test_zone_ids_become_the_accounts_names_where_skypilot_has_written_them(tmp_path: Path) -> None:
    shutil.copytree(HERE / "v8", tmp_path, dirs_exist_ok=True)
    mapping = "AvailabilityZoneName,AvailabilityZone\nus-east-1a,use1-az6\nus-east-1c,use1-az4\n"
    (tmp_path / "aws/az_mappings-0123.csv").write_text(mapping)
    zones = {offer.zone for offer in Catalog(tmp_path).offers(AWS, EIGHT)}
    assert zones == {"us-east-1a", "us-east-1c"}


@pytest.mark.parametrize(
    ("place", "words", "hint"),
    [
        ("aws/us-east-9", "aws has no region 'us-east-9'", "did you mean us-east-2?"),
        ("gcp/us-central1/us-central1-x", "gcp/us-central1 has no zone", "did you mean us-central1-"),
    ],
)
def test_a_place_that_does_not_exist_is_refused_with_the_nearest(
    catalog: Catalog, place: str, words: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=words.replace("'", ".")) as refused:
        catalog.offers(Infra.parse(place), EIGHT)
    assert refused.value.hint and refused.value.hint.startswith(hint)


def test_a_card_that_a_cloud_does_not_sell_is_no_error_but_no_offer(catalog: Catalog) -> None:
    assert catalog.offers(AWS, Gpus("RTX4090", 8)) == []
    assert catalog.offers(Infra("gcp", "us-west1"), EIGHT) == []


def test_a_cloud_without_prices_is_not_ready_and_says_how_to_get_them(catalog: Catalog) -> None:
    with pytest.raises(NotReady) as refused:
        catalog.offers(Infra("azure"), EIGHT)
    assert refused.value.hint and "sky gpus list --infra azure" in refused.value.hint


def test_a_folder_that_is_no_catalog_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no catalog"):
        Catalog(tmp_path)


LAMBDA = """InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,GpuInfo,SpotPrice
cpu_1x,,,1.0,4.0,0.05,us-east-1,,
cpu_4x_general,,,4.0,16.0,0.2,us-east-1,,
gpu_1x_a10,A10,1.0,30.0,200.0,0.75,us-east-1,"{'Gpus': [{'Name': 'A10', 'Count': 1.0}]}",
gpu_part,A10,0.25,4.0,20.0,0.2,us-east-1,,
gpu_1x_a10,A10,1.0,30.0,200.0,nan,us-west-1,,
"""


def test_a_cloud_without_zones_and_spot_prices_is_read_too(tmp_path: Path) -> None:
    """As SkyPilot writes Lambda's file."""
    (tmp_path / "lambda").mkdir()
    (tmp_path / "lambda/vms.csv").write_text(LAMBDA)
    catalog = Catalog(tmp_path)
    offers = catalog.offers(Infra("lambda"), Gpus("A10", 1))
    assert [(o.region, o.zone, o.on_demand, o.spot) for o in offers] == [
        ("us-east-1", "", 0.75, None),
        ("us-west-1", "", None, None),
    ]
    assert [offer.instance for offer in catalog.offers(Infra("lambda"), None)] == ["cpu_4x_general"]
    assert catalog.machines(["lambda"], ["A10"]) == [("A10", 1)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "InstanceType,Price\nx,1\n",
        "InstanceType,AcceleratorName,AcceleratorCount,Price,SpotPrice,Region,AvailabilityZone\nx,A100-80GB,eight,1,1,r,z\n",
        "InstanceType,AcceleratorName,AcceleratorCount,Price,SpotPrice,Region,AvailabilityZone\nx,A100-80GB,8,1\n",
    ],
)
def test_a_broken_file_is_named_and_never_a_traceback(tmp_path: Path, text: str) -> None:
    (tmp_path / "aws").mkdir()
    (tmp_path / "aws/vms.csv").write_text(text)
    with pytest.raises(NotReady, match="aws/vms.csv"):
        Catalog(tmp_path).offers(AWS, EIGHT)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(["A100", "A100-80GB", "XA100-80GB", ""]),
            st.sampled_from([1, 4, 8]),
            st.sampled_from(["a", "b", "c"]),
            st.floats(0.01, 100),
        ),
        max_size=30,
    ),
    last_newline=st.booleans(),
)
def test_the_search_finds_what_reading_every_row_finds(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int, str, float]], last_newline: bool
) -> None:
    """Lines are searched as bytes and never all split: the same answer as csv's has to come out."""
    folder = tmp_path_factory.mktemp("catalog")
    (folder / "aws").mkdir()
    header = "InstanceType,AcceleratorName,AcceleratorCount,Price,SpotPrice,Region,AvailabilityZone"
    lines = [header, *(f'm{n},{name},{n}.0,"{price}",,r,{zone}' for name, n, zone, price in rows)]
    (folder / "aws/vms.csv").write_text("\n".join(lines) + ("\n" if last_newline else ""))
    expected: dict[str, float] = {}
    for name, count, zone, price in rows:
        if (name, count) == ("A100-80GB", 8):
            expected[zone] = min(price, expected.get(zone, price))
    found = Catalog(folder).offers(AWS, EIGHT)
    if expected:
        assert {offer.zone: offer.on_demand for offer in found} == expected
    else:  # fewer than eight are not enough
        assert found == []
