"""Says "ready", then calls until the first answer comes, and prints when that was on the clock of ``time.monotonic``.

python -m benchmarks.serving.first ADDRESS METHOD REQUESTS
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import grpc

from benchmarks.serving.load import read_requests

PAUSE_S = 0.005


def main(address: str, method: str, requests: Path) -> None:
    request = read_requests(requests)[0]
    # A refused connection is tried again at once, not after gRPC's growing pauses.
    options = [("grpc.initial_reconnect_backoff_ms", 5), ("grpc.max_reconnect_backoff_ms", 5)]
    options += [("grpc.min_reconnect_backoff_ms", 5)]
    with grpc.insecure_channel(address, options=options) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        print("ready", flush=True)
        while True:
            try:
                call(request, timeout=10.0)
            except grpc.RpcError:
                time.sleep(PAUSE_S)
            else:
                print(time.monotonic(), flush=True)
                return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
