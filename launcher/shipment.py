"""What travels from this computer to a rented machine beside the task: our wheel, names of secrets, addresses.

Only names of secrets, never their values: clouds/sky.py fills those in when it hands the task over, and nothing else
ever holds them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher.planning.plan import TrainRequest
from launcher.spot.plugin import STOCK_STRATEGY, STRATEGY, strategy
from launcher.wheel import wheel_path
from trainer.config import TrainConfig

# Set here, each is handed to the machine as a secret. A machine of AWS or GCP mostly needs none: SkyPilot gives it
# the account's own right to its buckets.
SECRETS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "WANDB_API_KEY",
)
# No secrets, but the machine must know them too: where the store is, when it is not the cloud's own.
ADDRESSES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "STORAGE_EMULATOR_HOST",
)
# What shows that a machine can reach the store.
STORES = {"s3": "boto3", "s3+single-writer": "boto3", "gs": "google.cloud.storage"}
_MODULES = ("trainer", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class Shipment:
    """What a task needs of this computer. The empty one is for machines that are this computer."""

    wheel: Path | None = None
    extras: tuple[str, ...] = ("train",)
    modules: tuple[str, ...] = _MODULES
    secrets: tuple[str, ...] = ()
    envs: Mapping[str, str] = field(default_factory=dict)
    strategy: str = STOCK_STRATEGY
    """Of SkyPilot: which machine comes after one that was taken."""

    @property
    def goes_back(self) -> bool:
        """Whether the next machine may come from the very region that took the last one."""
        return self.wheel is not None and self.strategy != STRATEGY


def shipment_of(request: TrainRequest) -> Shipment:
    """What travels with the task: nothing, where the machine is this computer."""
    return Shipment() if request.local else pack(request.config, request.store, strategy())


def pack(config: TrainConfig, store: str, recovery: str) -> Shipment:
    """What this computer sends along. Reads our own files for the wheel's name, and writes nothing."""
    extras, modules = ["train"], list(_MODULES)
    if config.parallel.strategy == "deepspeed":
        extras.append("deepspeed")
        modules.append("deepspeed")
    if os.environ.get("WANDB_API_KEY") and config.tracking.report_to != "none":
        extras.append("wandb")  # a process beside the attempt keeps the curve up to date
        modules.append("wandb")
    if needed := STORES.get(store.partition("://")[0]):
        modules.append(needed)
    return Shipment(
        wheel=wheel_path(),
        extras=tuple(extras),
        modules=tuple(modules),
        secrets=tuple(name for name in SECRETS if os.environ.get(name)),
        envs={name: os.environ[name] for name in ADDRESSES if os.environ.get(name)},
        strategy=recovery,
    )
