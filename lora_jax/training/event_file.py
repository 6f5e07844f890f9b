"""Scalars for TensorBoard, written in this thread.

tensorboardX's own writer hands events to a thread. On a full disk that thread dies, and the eleventh event
waits for it for ever.
"""

from __future__ import annotations

import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from lora_jax.files import make_folder
from lora_jax.reading import named

_INTERVAL = 120.0  # seconds between two flushes


class EventFile:
    """A new file of events in a folder."""

    def __init__(self, folder: Path, purge_step: int):
        """Opens the file.

        Args:
          folder: made if needed.
          purge_step: TensorBoard hides events of earlier files from this step on.

        Raises:
          OSError: it cannot be written.
        """
        make_folder(folder)
        self._folder, self._flushed = folder, 0.0
        self._writer = EventsWriter(str(folder / "events"))
        for event in (
            Event(step=purge_step, file_version="brain.Event:2"),
            Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)),
        ):
            event.wall_time = time.time()
            self._writer.write_event(event)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Adds one value.

        Raises:
          OSError: the disk is full, or the like; it names the folder.
        """
        now = time.time()
        event = Event(summary=scalar(name, value), step=step, wall_time=now)
        try:
            self._writer.write_event(event)
            if now - self._flushed > _INTERVAL:
                self._flushed = now
                self._writer.flush()
        except OSError as error:
            raise named(error, self._folder) from error

    def close(self) -> None:
        """Flushes and closes the file.

        Raises:
          OSError: as `add_scalar`; the file is closed all the same.
        """
        try:
            self._writer.close()
        except OSError as error:
            raise named(error, self._folder) from error
