"""Scalars for TensorBoard: its event files, written here in the caller's thread, so that a full disk cannot block it.

An event file is a TFRecord file of `tensorflow.Event` messages. Of both only the few fields below are needed, so no
library is: the usual one imports PyTorch where it can, and hangs when its writer thread has died.
"""

import errno
import logging
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from crc32c import crc32c


class EventFile:
    """An event file that is appended to. A failure to write is a warning, and ends the writing of events."""

    def __init__(self, folder: Path, first_step: int):
        """`first_step`: TensorBoard discards what earlier files in the folder say of this step and later ones."""
        self._file = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
            self._file = open(folder / name, "ab", buffering=0)  # noqa: SIM115 — closed in close()
        except OSError as problem:
            self._give_up(problem)
        # Event {1: wall_time, 2: step, 3: file_version, 5: summary, 7: session_log}; SessionLog {1: status, 1 = START}
        self._write(_event(0, _field(3, b"brain.Event:2")), _event(first_step, _field(7, b"\x08\x01")))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one scalar for each tag."""
        # Summary {1: value}; Value {1: tag, 2: simple_value}
        with np.errstate(over="ignore"):  # beyond float32 it is infinite
            scalars = [_field(1, tag.encode()) + b"\x15" + np.float32(x).tobytes() for tag, x in values.items()]
        self._write(*(_event(step, _field(5, _field(1, scalar))) for scalar in scalars))

    def close(self) -> None:
        """Closes the file; nothing can be added afterwards."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, *events: bytes) -> None:
        if self._file is None:
            return
        content = b""
        for event in events:
            length = struct.pack("<Q", len(event))
            content += length + _checksum(length) + event + _checksum(event)
        try:
            if self._file.write(content) < len(content):  # the last bytes of a disk
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as problem:
            self._give_up(problem)

    def _give_up(self, problem: OSError) -> None:
        logging.warning("nothing more is written for TensorBoard (%s); metrics.jsonl has it all", problem.strerror)
        self.close()


def masked_checksum(data: bytes | memoryview) -> int:
    """Returns the CRC-32C as TensorFlow's files and LevelDB store it: rotated and with a constant added, since the CRC
    of bytes that hold their own CRC is a poor check."""
    checksum = crc32c(data)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_checksum(data))


def _event(step: int, content: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", time.time()) + b"\x10" + _varint(step) + content


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)
