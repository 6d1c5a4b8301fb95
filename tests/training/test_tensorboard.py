"""Event files: TensorFlow's own format, byte by byte; a disk without room is a warning and never an end."""

import struct
import time

import pytest
from crc32c import crc32c

from bert_jax.training.tensorboard import EventFile


def records(path):
    """The messages of a TFRecord file, whose checksums are checked."""
    content, found = path.read_bytes(), []
    while content:
        length = struct.unpack("<Q", content[:8])[0]
        for data, masked in ((content[:8], content[8:12]), (content[12 : 12 + length], content[12 + length :][:4])):
            checksum = crc32c(data)
            rotated = ((checksum >> 15 | checksum << 17) + 0xA282EAD8) % 2**32
            assert struct.unpack("<I", masked)[0] == rotated
        found.append(content[12 : 12 + length])
        content = content[16 + length :]
    return found


def test_events_are_the_bytes_of_the_format(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1.5)
    events = EventFile(tmp_path / "tensorboard", 301)
    events.add(300, {"train/loss": 2.0, "train/huge": 1e60})
    events.close()
    wall = b"\x09" + struct.pack("<d", 1.5)
    file = next((tmp_path / "tensorboard").iterdir())
    assert file.name.startswith("events.out.tfevents.1.")
    scalar = b"\x0a\x0atrain/loss\x15\x00\x00\x00\x40"  # tag, then 2.0 as float32
    infinite = b"\x0a\x0atrain/huge\x15\x00\x00\x80\x7f"
    assert records(file) == [
        wall + b"\x10\x00\x1a\x0dbrain.Event:2",
        wall + b"\x10\xad\x02\x3a\x02\x08\x01",  # 301 = 0b10_0101101; a session starts: later steps are discarded
        wall + b"\x10\xac\x02\x2a\x13\x0a\x11" + scalar,
        wall + b"\x10\xac\x02\x2a\x13\x0a\x11" + infinite,
    ]


@pytest.mark.parametrize("where", ["folder", "write"])
def test_a_failure_is_a_warning_and_ends_the_events(tmp_path, caplog, monkeypatch, where):
    folder = tmp_path / "tensorboard"
    if where == "folder":
        folder.write_text("a file in its place")
        events = EventFile(folder, 1)
    else:
        monkeypatch.setattr("builtins.open", lambda *_, **__: open_unpatched("/dev/full", "ab", buffering=0))
        events = EventFile(folder, 1)
    for step in range(100):
        events.add(step, {"train/loss": 1.0})
    events.close()
    assert caplog.text.count("nothing more is written for TensorBoard") == 1


open_unpatched = open
