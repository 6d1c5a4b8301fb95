"""Pictures, sounds and features: vectors by hand and by other implementations, and files that are refused."""

import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from bert_jax.config import UserError
from bert_jax.data.labelled.tables import Row
from bert_jax.data.media.sound import log_mel, mel_filters
from bert_jax.data.media.source import VectorSource, patches, vector_source
from experiments import visual

RANDOM = np.random.default_rng(0)


def make_source(**options) -> VectorSource:
    config = visual.get_config("classify")
    config.data.image = "image"
    config.image.update(height=4, width=6, channels=3, patch_size=2)
    for name, value in options.items():
        group, key = name.split("_", 1)
        config[group][key] = value
    return vector_source(config)


def read(source: VectorSource, folder, value, kind="image"):
    """Reads the value as a row of a table that lies in the folder."""
    table = folder / "train.jsonl"
    table.write_text("{}\n")
    return source.read(Row(f"{table}:7", {kind: value}))


def png(folder, pixels, name="a.png"):
    Image.fromarray(pixels).save(folder / name)
    return name


def test_patches_are_those_of_a_loop_and_of_pytorch():
    torch = pytest.importorskip("torch", reason="pip install -e '.[parity]'")
    pixels = RANDOM.random((6, 8, 3), np.float32)
    found, grid = patches(pixels, 3, 2)
    cut = [pixels[3 * i : 3 * i + 3, 2 * j : 2 * j + 2].reshape(-1) for i in range(2) for j in range(4)]
    np.testing.assert_array_equal(found, cut)
    assert grid.tolist() == [[i + 1, j + 1] for i in range(2) for j in range(4)]
    # A convolution whose stride is its size, as vision transformers have it, is a product with these patches.
    kernel = RANDOM.random((5, 3, 3, 2), np.float32)
    theirs = torch.nn.functional.conv2d(
        torch.tensor(pixels).permute(2, 0, 1)[None], torch.tensor(kernel), stride=(3, 2)
    )[0]
    ours = found @ kernel.transpose(2, 3, 1, 0).reshape(-1, 5)
    np.testing.assert_allclose(ours, theirs.reshape(5, -1).T.numpy(), rtol=1e-5)


def test_a_picture_is_scaled_to_0_and_1_then_normalised(tmp_path):
    pixels = RANDOM.integers(0, 256, (4, 6, 3), np.uint8)
    expected = patches((pixels / np.float32(255) - np.float32(0.25)) / np.float32([1, 2, 4]), 2, 2)[0]
    np.save(tmp_path / "floats.npy", pixels / np.float32(255))
    np.save(tmp_path / "many.npy", np.stack([pixels, 0 * pixels]))
    np.savez(tmp_path / "two.npz", other=np.zeros(3), image=pixels)
    source = make_source(image_mean="0.25", image_std="1, 2,4")
    for name in (png(tmp_path, pixels), "floats.npy", "many.npy#0", "two.npz", pixels.tolist()):
        value = np.asarray(name, np.uint8) if isinstance(name, list) else name
        found = read(source, tmp_path, value)
        np.testing.assert_allclose(found.values, expected, atol=1e-6)
        assert found.values.shape == (6, 12) and found.values.dtype == np.float32
    assert read(source, tmp_path, "many.npy#1").name == "many.npy#1"
    assert source.most == 6 and (source.rows, source.columns, source.positions) == (2, 3, "grid")


def test_a_picture_of_another_size_is_stretched_cropped_or_refused(tmp_path):
    # Left half black, right half white: stretched it stays so, cropped to a narrow middle too.
    pixels = np.zeros((8, 32), np.uint8)
    pixels[:, 16:] = 255
    name = png(tmp_path, pixels)
    options = {"image_channels": 1, "image_mean": "0", "image_std": "1"}
    for fit in ("stretch", "crop"):
        values = read(make_source(image_fit=fit, **options), tmp_path, name).values
        rows = values.reshape(2, 3, 2, 2).swapaxes(1, 2).reshape(4, 6)
        np.testing.assert_array_equal(rows[:, 0], 0)
        np.testing.assert_array_equal(rows[:, 5], 1)
    with pytest.raises(UserError, match=r"train.jsonl:7: .*a.png has 8×32 pixels, not the 4×6 of image.height"):
        read(make_source(image_fit="error", **options), tmp_path, name)


def test_a_jpeg_is_turned_upright(tmp_path):
    pixels = np.zeros((6, 4, 3), np.uint8)  # lies on its side
    pixels[:3] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=100)
    values = read(make_source(image_mean="0", image_std="1", image_patch_size=1), tmp_path, "a.jpg").values
    upright = values.reshape(4, 6, 3)
    assert upright[:, :2].max() < 0.3 and upright[:, 4:].min() > 0.7


def test_the_spectrogram_of_a_tone_peaks_where_its_frequency_is():
    rate, mels = 16_000, 40
    wave = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    found = log_mel(wave, rate, mels)
    assert found.shape == (98, mels)  # (16,000 − 400) / 160 + 1
    filters = mel_filters(mels, 512, rate)
    assert filters.shape == (mels, 257)
    expected = int(np.argmax(filters[:, 1000 * 512 // rate]))
    assert set(np.argmax(found, axis=1)) == {expected}
    # one frame by the definition
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    spectrum = [
        abs(np.sum(wave[:400] * window * np.exp(-2j * np.pi * k * np.arange(400) / 512))) ** 2 for k in range(257)
    ]
    np.testing.assert_allclose(found[0], np.log(filters @ np.asarray(spectrum) + 1e-6), rtol=1e-5, atol=1e-5)


def test_recordings_of_any_width_and_rate_give_about_the_same(tmp_path):
    rate, time = 16_000, np.arange(8_000) / 16_000
    wave = 0.5 * np.sin(2 * np.pi * (400 + 2000 * time) * time)
    files = {
        "a.wav": (rate, wave.astype(np.float32)),
        "b.wav": (rate, (wave * 32767).astype(np.int16)),
        "c.wav": (rate, (wave * 127 + 128).astype(np.uint8)),
        "d.wav": (rate, np.stack([2 * wave, 0 * wave], axis=1).astype(np.float32)),
        "e.wav": (2 * rate, np.interp(np.arange(16_000) / 32_000, time, wave).astype(np.float32)),
        "f.wav": (rate, 0.1 * wave.astype(np.float32)),
    }
    for name, (own_rate, samples) in files.items():
        wavfile.write(tmp_path / name, own_rate, samples)
    source = make_source(data_image="", data_sound="sound", sound_mels=32, sound_frames=64, sound_patch_mels=8)
    assert (source.rows, source.columns, source.size, source.positions) == (4, 4, 128, "axes")
    found = {name: read(source, tmp_path, name, "sound") for name in files}
    assert found["a.wav"].values.shape == (12, 128), "48 frames are 3 patches long"
    loud = found["a.wav"].values > 1
    for name, tolerance in (("b.wav", 0.05), ("d.wav", 1e-3), ("e.wav", 0.3)):
        assert np.abs(found[name].values - found["a.wav"].values)[loud].mean() < tolerance, name
    np.save(tmp_path / "s.npy", log_mel(wave.astype(np.float32).astype(np.float64), rate, 32))
    np.testing.assert_allclose(read(source, tmp_path, "s.npy", "sound").values, found["a.wav"].values, atol=1e-5)


def test_regions_come_as_files_or_as_lists(tmp_path):
    source = make_source(data_image="", data_features="features", features_size=3, features_regions=4)
    features = RANDOM.random((2, 3), np.float32)
    np.save(tmp_path / "a.npy", features)
    for value in ("a.npy", features.tolist()):
        found = read(source, tmp_path, value, "features")
        np.testing.assert_allclose(found.values, features, rtol=1e-6)
        assert found.grid.tolist() == [[1, 1], [2, 1]] and source.positions == "none"


def huge_png():
    """A PNG of a few bytes that claims 60,000 × 60,000 pixels."""

    def chunk(kind, content):
        whole = kind + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def bomb():
    """A .npz file of a few bytes whose directory claims that its array has 1.2 GB."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        header = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (300000000,), }"
        file.writestr("image.npy", header.ljust(127) + b"\n")
    return content.getvalue().replace(struct.pack("<I", 128), struct.pack("<I", 1_200_000_128))


def _with_byte(path, position, value):
    content = bytearray(path.read_bytes())
    content[position] = value
    return bytes(content)


BAD = [
    ({"image": "b.png"}, r"train.jsonl:7: /.*/b.png is not there: correct column 'image', or name its folder"),
    ({"image": "../secret.png"}, r"train.jsonl:7: '../secret.png' leads out of the folder /.*: move the file into it"),
    ({"image": "/etc/passwd"}, "train.jsonl:7: '/etc/passwd' leads out of the folder"),
    ({"image": "link.png"}, "train.jsonl:7: 'link.png' leads out of the folder"),
    ({"image": "a\0b"}, r"train.jsonl:7: column 'image' holds 'a\\x00b', no name of a file: correct this row"),
    ({"image": ""}, "train.jsonl:7: column 'image' holds '', no name of a file"),
    ({"image": None}, "train.jsonl:7: column 'image' holds null, no numbers: give a file, or lists of numbers"),
    ({"image": "x" * 5000}, "train.jsonl:7: column 'image' names no possible file"),
    ({"picture": "a.png"}, "train.jsonl:7: no column 'image' .*columns: picture"),
    ({"image": "short.png"}, "short.png is no whole PNG or JPEG .*: save it again or leave out this row"),
    ({"image": "text.png"}, "text.png is no whole PNG or JPEG .*cannot identify"),
    ({"image": "huge.png"}, "huge.png (has 60000×60000 pixels, over 67,108,864: shrink it|is no whole PNG)"),
    ({"image": "deep.png"}, "deep.png has I;16 pixels of more than 8 bits: save it with 8 bits"),
    (
        {"image": "gif.gif"},
        r"gif.gif: suffix '.gif' is unknown in data.image: give one of .png, .jpg, .jpeg, .npy, .npz",
    ),
    ({"image": "objects.npy"}, r"objects.npy is no whole array .*Python objects in dtype.*without objects"),
    ({"image": "cut.npy"}, "cut.npy is no whole array"),
    ({"image": "words.npy"}, "words.npy holds <U1, no numbers"),
    ({"image": "nan.npy"}, r"nan.npy holds nan at \(1, 2, 0\): correct or leave out this row"),
    ({"image": "gray.npy"}, "gray.npy is 4×6; image.height, image.width and image.channels say 4×6×3"),
    ({"image": "many.npy#2"}, "many.npy has 2 entries, none of number 2"),
    ({"image": "names.npz"}, "names.npz has the arrays a, b: call the one to read 'image'"),
    ({"image": "bomb.npz"}, "bomb.npz: image unpacks to 1,200,000,128 bytes, over the 1,073,741,824 of one row"),
    ({"image": [[1, 2], [3]]}, "column 'image' holds lists of unequal lengths"),
    ({"image": "header.npy"}, r"header.npy is no whole array"),
    ({"image": "bits.npz"}, r"bits.npz is no whole array"),
    ({"image": "large.npy"}, r"large.npy holds 1e\+300 at \(1, 2, 0\): correct or leave out this row"),
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media") / "inside"
    folder.mkdir()
    pixels = RANDOM.integers(0, 256, (4, 6, 3), np.uint8)
    png(folder.parent, pixels, "secret.png")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    whole = (folder.parent / "secret.png").read_bytes()
    (folder / "short.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("<svg/>")
    (folder / "huge.png").write_bytes(huge_png())
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(folder / "deep.png")
    Image.fromarray(pixels).save(folder / "gif.gif")
    np.save(folder / "objects.npy", np.asarray([{"a": 1}], object), allow_pickle=True)
    np.save(folder / "cut.npy", pixels)
    (folder / "cut.npy").write_bytes((folder / "cut.npy").read_bytes()[:-9])
    np.save(folder / "words.npy", np.asarray([["a"]]))
    broken = pixels.astype(np.float32)
    broken[1, 2, 0] = np.nan
    np.save(folder / "nan.npy", broken)
    broken = broken.astype(np.float64)
    broken[1, 2, 0] = 1e300  # finite until it is float32
    np.save(folder / "large.npy", broken)
    (folder / "header.npy").write_bytes((folder / "large.npy").read_bytes().replace(b"3), }", b"3   }"))
    np.savez_compressed(folder / "bits.npz", image=np.zeros((4, 6, 3), np.float32))
    (folder / "bits.npz").write_bytes(_with_byte(folder / "bits.npz", 60, 0xFF))
    np.save(folder / "gray.npy", pixels[:, :, 0])
    np.save(folder / "many.npy", np.stack([pixels, pixels]))
    np.savez(folder / "names.npz", a=pixels, b=pixels)
    (folder / "bomb.npz").write_bytes(bomb())
    return folder


@pytest.mark.parametrize(("values", "message"), BAD)
def test_a_bad_row_is_one_line_that_names_row_and_file(hostile, values, message):
    table = hostile / "train.jsonl"
    table.write_text(json.dumps({}) + "\n")
    with pytest.raises(UserError, match=message) as caught:
        make_source().read(Row(f"{table}:7", values))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"RIFF", b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\1\0\1\0\0\0\0\0\0\0\0\0\0\0\0\0"]
)
def test_a_damaged_recording_is_one_line(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UserError, match=r"train.jsonl:7: .*a.wav (is no whole WAV|has no samples)"):
        read(make_source(data_image="", data_sound="sound"), tmp_path, "a.wav", "sound")


def test_a_long_recording_and_odd_rates_cost_no_more_than_what_is_kept(tmp_path):
    """Half a minute, of which 0.64 s are kept, gives what 0.7 s of it give; a second at 999,983 Hz needs no filter of
    20 million taps; at 1 Hz a megabyte would be twelve days."""
    source = make_source(data_image="", data_sound="sound", sound_mels=32, sound_frames=64, sound_patch_mels=8)
    wave = RANDOM.normal(0, 1000, 30 * 22_050).astype(np.int16)
    found = []
    for name, samples in (("long.wav", wave), ("short.wav", wave[:15_435])):
        wavfile.write(tmp_path / name, 22_050, samples)
        found.append(read(source, tmp_path, name, "sound").values)
    np.testing.assert_array_equal(*found)
    for rate in (999_983, 1):
        wavfile.write(tmp_path / "odd.wav", rate, wave)
        assert read(source, tmp_path, "odd.wav", "sound").values.shape == (16, 128)
    wavfile.write(tmp_path / "odd.wav", 1 << 30, wave[:9])
    with pytest.raises(UserError, match=r"odd.wav claims 1,073,741,824 samples per second, over 1,000,000"):
        read(source, tmp_path, "odd.wav", "sound")
    wavfile.write(tmp_path / "odd.wav", 16_000, np.asarray([0, 1e200]))
    with pytest.raises(UserError, match=r"odd.wav holds 1e\+200 at \(1,\): correct or leave out this row"):
        read(source, tmp_path, "odd.wav", "sound")


def test_features_of_another_width_or_number_are_refused(tmp_path):
    source = make_source(data_image="", data_features="features", features_size=3, features_regions=4)
    for shape, message in (
        ((2, 5), "is 2×5; features are regions × 3 .features.size"),
        ((5, 3), "has 5 regions; it can"),
    ):
        np.save(tmp_path / "a.npy", np.zeros(shape))
        with pytest.raises(UserError, match=f"train.jsonl:7: .*a.npy {message}"):
            read(source, tmp_path, "a.npy", "features")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_patch_size": 3}, "image.height 4 is not a multiple of image.patch_size 3"),
        ({"image_mean": "1,2"}, "image.mean is '1,2'; give one number, or 3"),
        ({"image_std": "0"}, "image.std is '0'; it must be above 0"),
        ({"data_sound": "x"}, "data.image and data.sound are both set"),
        ({"data_image": "", "data_modalities": "vectors"}, "data.modalities=vectors needs a column"),
        ({"data_image": "", "data_media": "pictures"}, "data.media=pictures needs a column"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(UserError, match=message):
        make_source(**options)
