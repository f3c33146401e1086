"""Choice of the build of torch by `make`, with programs in place of uv."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("index", "driver", "asked", "backend", "said"),
    [
        (True, False, "", "auto", "without CUDA, as there is no NVIDIA driver; to download: about 0.6 GB"),
        (True, True, "", "auto", "with CUDA, as there is an NVIDIA driver; to download: 3.3 GB"),
        (False, False, "", "", "which has one without, cannot be reached; to download: 3.3 GB"),
        (False, False, "cpu", "cpu", "as UV_TORCH_BACKEND says"),
    ],
)
def test_torch_without_cuda_where_there_is_no_driver(
    tmp_path: Path, index: bool, driver: bool, asked: str, backend: str, said: str
) -> None:
    if not driver and Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has a driver")
    uv = tmp_path / "uv"
    uv.write_text(f"#!/bin/sh\ncat >/dev/null\nexit {int(not index)}\n")
    uv.chmod(0o755)
    if driver:
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.defpath}", "UV_TORCH_BACKEND": asked}
    done = subprocess.run(
        ["tools/torch-backend.sh", str(uv), "python"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.strip(), said in done.stderr) == (backend, True), done.stderr
