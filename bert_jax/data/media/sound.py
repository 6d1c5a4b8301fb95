"""One recording → its log-mel spectrogram, float32[frames, mels]: WAV by SciPy, or a spectrogram that is there.

Windows of 25 ms (Hann), 10 ms apart; power spectrum; triangles of equal width on the mel scale 2595 log10(1 + f / 700)
from 0 Hz to half the sample rate; log(energy + 1e-6). Each recording is then shifted and scaled to mean 0 and standard
deviation 1, so that its loudness has no part in it.
"""

import math
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from bert_jax.config import UserError
from bert_jax.data.media.arrays import check_numbers

_WINDOW, _HOP = 0.025, 0.010  # seconds
_LEAST = 1e-6  # energy of silence
_MOST_SAMPLES = 1 << 27  # an hour of 16 kHz is 2^26
_HIGHEST_RATE = 1_000_000  # Hz


def read_wav(path: Path, rate: int, mels: int, frames: int, origin: str) -> Float32[np.ndarray, "frames mels"]:
    """Returns the spectrogram of a WAV file, whose channels are averaged and which is resampled to `rate` Hz; of a long
    one at least the first `frames`.

    Raises UserError, which names `origin`, for a file that is no whole WAV.
    """
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    where = f"{origin}: {path}"
    if path.stat().st_size > 8 * _MOST_SAMPLES:
        raise UserError(f"{where} has {path.stat().st_size:,} bytes, over {8 * _MOST_SAMPLES:,}: cut it into pieces")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", wavfile.WavFileWarning)  # a file that ends early
            own_rate, samples = wavfile.read(path)
    except Exception as error:  # the parser trusts its file: struct.error, ZeroDivisionError and others
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{where} is no whole WAV ({reason[:120]}): save it again or leave out this row") from None
    check_numbers(samples, where)
    if not samples.size or own_rate < 1:
        raise UserError(f"{where} has no samples: leave out this row")
    if own_rate > _HIGHEST_RATE:
        raise UserError(f"{where} claims {own_rate:,} samples per second, over {_HIGHEST_RATE:,}: save it again")
    # What comes later is not kept. The filter that resamples reaches ten samples of the lower rate.
    seconds = (frames * round(_HOP * rate) + round(_WINDOW * rate)) / rate
    samples = samples[: math.ceil(own_rate * seconds + 20 * max(1, own_rate / rate))]
    wave = samples.astype(np.float64)
    if samples.dtype.kind in "ui":  # bytes are unsigned, with silence at 128
        bits = np.iinfo(samples.dtype).bits
        wave = (wave - (1 << (bits - 1) if samples.dtype.kind == "u" else 0)) / (1 << (bits - 1))
    wave = wave if wave.ndim == 1 else wave.mean(axis=1)
    if own_rate != rate:
        # Exact for usual rates; that of 99,991 Hz would need a filter of two million taps.
        ratio = Fraction(rate, own_rate).limit_denominator(10_000)
        wave = resample_poly(wave, ratio.numerator, ratio.denominator)
    return log_mel(wave, rate, mels)


def log_mel(wave: Float[np.ndarray, " T"], rate: int, mels: int) -> Float32[np.ndarray, "frames mels"]:
    """Returns the spectrogram of samples; one that is shorter than a window is padded with silence to one frame."""
    size, hop = round(_WINDOW * rate), round(_HOP * rate)
    wave = np.pad(wave, (0, max(0, size - len(wave))))
    bins = 1 << (size - 1).bit_length()
    # The periodic window, of which the symmetric one of np.hanning lacks the last value.
    window = np.hanning(size + 1)[:-1]
    frames = np.lib.stride_tricks.sliding_window_view(wave, size)[::hop]
    energy = np.square(np.abs(np.fft.rfft(frames * window, bins, axis=-1)))
    return np.log(energy @ mel_filters(mels, bins, rate).T + _LEAST).astype(np.float32)


def mel_filters(mels: int, bins: int, rate: int) -> Float[np.ndarray, "mels half"]:
    """Returns the triangles over the frequencies 0 to rate / 2 of a transform of `bins` samples; each peaks at 1."""
    highest = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, highest, mels + 2) / 2595) - 1)
    frequencies = np.arange(bins // 2 + 1) * rate / bins
    left, centre, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising, falling = (frequencies - left) / (centre - left), (right - frequencies) / (right - centre)
    return np.clip(np.minimum(rising, falling), 0, None)


def spectrogram_of(array: np.ndarray, mels: int, where: str) -> Float32[np.ndarray, "frames mels"]:
    """Returns an array [frames, mels] as it is. Raises UserError for another shape."""
    check_numbers(array, where)
    if array.ndim != 2 or array.shape[1] != mels or not len(array):
        shape = "×".join(map(str, array.shape)) or "one number"
        raise UserError(f"{where} is {shape}; a spectrogram is frames × {mels} (sound.mels)")
    return array.astype(np.float32)


def normalised(spectrogram: Float32[np.ndarray, "frames mels"]) -> Float32[np.ndarray, "frames mels"]:
    """Returns the spectrogram with mean 0 and standard deviation 1; of silence, zeros."""
    values = spectrogram.astype(np.float64)
    return ((values - values.mean()) / max(float(values.std()), 1e-5)).astype(np.float32)
