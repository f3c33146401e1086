"""Server that answers every request at once, for the highest rate that the client can drive.

python -m benchmarks.serving.echo        prints its address as JSON and serves until it is terminated
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc

METHOD: Final = "/benchmark.Echo/Echo"
_ANSWER: Final = bytes(1000)


def main() -> None:
    server = grpc.server(ThreadPoolExecutor(64), options=[("grpc.max_receive_message_length", 16 * 1024 * 1024)])
    server.add_generic_rpc_handlers([_handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(json.dumps({"address": f"127.0.0.1:{port}"}), flush=True)
    server.wait_for_termination()


def _handler() -> Any:
    handler: Any = grpc.unary_unary_rpc_method_handler(lambda request, context: _ANSWER)
    service, name = METHOD[1:].split("/")
    return grpc.method_handlers_generic_handler(service, {name: handler})


if __name__ == "__main__":
    main()
