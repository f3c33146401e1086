#!/bin/sh
# Build of torch for this machine, as the value of UV_TORCH_BACKEND on stdout; nothing: the ordinary one, from PyPI.
# Says on stderr what will be downloaded. Usage: tools/torch-backend.sh UV PYTHON
#
# "auto" has uv look for an NVIDIA driver, and take the build without CUDA where there is none. Both builds come from
# PyTorch's own index. Whether that can be reached, and has the version in requirements/constraints.txt, is asked as uv
# will ask it, through the same proxies and certificates.
set -eu
uv=$1 python=$2

# All that is downloaded, measured with uv on 2026-11-30 (x86-64): CUDA and its torch are 3.0 GB of it.
large="3.3 GB, 5 minutes at 100 Mbit/s; 6.2 GB on disk"
small="about 0.6 GB, a minute at 100 Mbit/s; 2 GB on disk"
if [ -n "${UV_TORCH_BACKEND:-}" ]; then
    echo "torch: the build $UV_TORCH_BACKEND, as UV_TORCH_BACKEND says" >&2
    echo "$UV_TORCH_BACKEND"
elif [ "$(uname -s)" != Linux ]; then
    echo "torch: the build for this system from PyPI" >&2
elif echo torch | UV_HTTP_TIMEOUT=10 UV_HTTP_RETRIES=0 "$uv" pip compile --python "$python" --quiet --no-deps \
    --torch-backend auto --constraint requirements/constraints.txt - >/dev/null 2>&1; then
    if [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null 2>&1; then
        echo "torch: with CUDA, as there is an NVIDIA driver; to download: $large" >&2
    else
        echo "torch: without CUDA, as there is no NVIDIA driver; to download: $small" >&2
    fi
    echo auto
else
    echo "torch: with CUDA from PyPI, as PyTorch's index, which has one without, cannot be reached;" \
        "to download: $large" >&2
fi
