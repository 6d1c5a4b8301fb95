"""What every test runs under: eight virtual CPU devices, strict ranks, and shared data where it is at hand."""

import os

# Before the first import of jax, which reads both once.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import tarfile
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """shared_data("sst2") → where `../shared/data/sst2.tar.xz` was unpacked; skips the test where there is none."""
    unpacked: dict[str, Path] = {}

    def folder(name: str) -> Path:
        archive = SHARED_DATA / f"{name}.tar.xz"
        if not archive.is_file():
            pytest.skip(f"needs shared data: no {archive.name} in ../shared/data beside the checkout")
        if name not in unpacked:
            target = tmp_path_factory.mktemp(name)
            with tarfile.open(archive) as file:
                file.extractall(target, filter="data")
            unpacked[name] = target
        return unpacked[name]

    return folder
