"""The jobs that the pipeline's tests run."""

from __future__ import annotations

from pathlib import Path

from trainer.data.clean import clean_settings
from trainer.data.pipeline import Job
from trainer.data.split import SplitSettings
from trainer.data.steps import DedupeSettings, Settings


def whole_settings(max_length: int = 400) -> Settings:
    return Settings(
        clean=clean_settings(),
        dedupe=DedupeSettings(),
        split=SplitSettings(max_length=max_length),
        keep_rejected=True,
    )


def whole_job(folder: Path) -> Job:
    """Every step but language (whose models take a second to load), over the two files of the folder."""
    inputs = (folder / "a.json", folder / "b.jsonl")
    return Job(inputs, folder / "train.jsonl", whole_settings(), folder / "rejected.jsonl")
