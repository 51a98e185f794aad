"""A run as TensorBoard's event files: a folder that `tensorboard --logdir` shows, alone or beside other runs.

Each time the folder is brought up to date a file is added that begins where the ones before it end, as TensorBoard
expects of a job that was resumed. A step is one record of such a file, so a writer that is killed leaves whole steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from launcher.errors import VlaunchError, require_extra
from launcher.runs.runview import RunRecord
from launcher.tracking.points import Point

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

_FILES = "events.out.tfevents.*"


class EventFiles:
    """The view of a run in a folder."""

    def __init__(self, record: RunRecord, folder: Path) -> None:
        """The run's own folder is made inside `folder`."""
        require_extra("tensorboard", "tensorboard", needed_for="TensorBoard's event files")
        self.folder = folder / record.run_id
        self.newest = max(_steps(self.folder), default=-1)
        self._file: BinaryIO | None = None

    def add(self, point: Point) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        if self._file is None:
            self._file = self._new_file()
            self._write(Event(wall_time=point.time, file_version="brain.Event:2"))
        self._write(Event(wall_time=point.time, step=point.step, summary=_summary(point)))
        self.newest = point.step

    def tell(self, record: RunRecord, now: datetime) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self, over: bool) -> None:
        if self._file is not None:
            self._file.close()

    def _new_file(self) -> BinaryIO:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads the files in the order of their names: time, then process.
            return (self.folder / f"events.out.tfevents.{time.time_ns():020d}.{os.getpid()}.vlaunch").open(
                "xb"
            )
        except OSError as error:
            raise VlaunchError(
                f"cannot write {self.folder}: {error.strerror}", hint="name another folder"
            ) from None

    def _write(self, event: Event) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        RecordWriter(self._file).write(event.SerializeToString())


def _summary(point: Point) -> Summary:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    values = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
    if point.says:
        text = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        said = TensorProto(dtype=DT_STRING, string_val=[point.says.encode()])
        values.append(Summary.Value(tag="event", metadata=text, tensor=said))
    return Summary(value=values)


def _steps(folder: Path) -> Iterator[int]:
    """Steps that the files of a folder have; what a killed writer left at an end is passed over."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for path in sorted(folder.glob(_FILES)):
        for event in LegacyEventFileLoader(str(path)).Load():
            if event.summary.value:
                yield event.step
