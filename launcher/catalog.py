"""Prices of machines: a small dated table, so that a plan needs neither network nor account.

Rows are copied from the public SkyPilot catalog (skypilot-org/skypilot-catalog, catalogs/v8/aws/vms.csv,
commit 00148f2a, late 2025), the cheapest spot zone of each region. They are a snapshot: spot prices move by
a few per cent a week, so every figure that rests on them says where it comes from.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.errors import UsageError, nearest

SOURCE = "SkyPilot catalog v8, commit 00148f2a, late 2025"


@dataclass(frozen=True, slots=True)
class Price:
    """One kind of machine in one region, in USD per hour."""

    accelerator: str
    """SkyPilot name and count; "" is a machine without one."""
    cloud: str
    region: str
    zone: str
    instance: str
    on_demand: float
    spot: float


PRICES = (
    Price("", "aws", "us-east-2", "use2-az2", "m6i.large", 0.096, 0.0276),
    Price("", "aws", "us-east-1", "use1-az2", "m6i.large", 0.096, 0.0352),
    Price("", "aws", "us-west-2", "usw2-az4", "m6i.large", 0.096, 0.0351),
    Price("", "aws", "eu-central-1", "euc1-az3", "m6i.large", 0.115, 0.0456),
    Price("T4:1", "aws", "us-east-2", "use2-az3", "g4dn.xlarge", 0.526, 0.1901),
    Price("T4:1", "aws", "us-east-1", "use1-az2", "g4dn.xlarge", 0.526, 0.2000),
    Price("A10G:1", "aws", "us-east-2", "use2-az1", "g5.xlarge", 1.006, 0.3770),
    Price("A10G:1", "aws", "us-east-1", "use1-az2", "g5.xlarge", 1.006, 0.4246),
    Price("A100:8", "aws", "us-east-2", "use2-az1", "p4d.24xlarge", 21.95764, 6.0374),
    Price("A100:8", "aws", "us-west-2", "usw2-az1", "p4d.24xlarge", 21.95764, 7.9992),
    Price("A100-80GB:8", "aws", "eu-central-1", "euc1-az2", "p4de.24xlarge", 34.29122, 8.0274),
    Price("A100-80GB:8", "aws", "us-east-1", "use1-az6", "p4de.24xlarge", 27.44705, 8.6505),
    Price("A100-80GB:8", "aws", "us-west-2", "usw2-az3", "p4de.24xlarge", 27.44705, 10.3338),
)


def offers(accelerator: str) -> list[Price]:
    """Machines with this accelerator, cheapest spot first.

    AWS sells A100s by eight: A100-80GB:4 is offered as the machine that has them, at its full price.

    Raises:
        UsageError: the table has none, with the nearest accelerator.
    """
    name, _, count = accelerator.partition(":")
    wanted = int(count or 1) if accelerator else 0
    fitting = [
        price
        for price in PRICES
        if price.accelerator.partition(":")[0] == name
        and int(price.accelerator.partition(":")[2] or 0) >= wanted
    ]
    if not fitting:
        known = sorted({price.accelerator for price in PRICES if price.accelerator})
        close = nearest(accelerator, known)
        hint = f"did you mean {close}?" if close else f"known are {', '.join(known)}"
        raise UsageError(f"no price is known for {accelerator}", hint=hint)
    return sorted(fitting, key=lambda price: price.spot)
