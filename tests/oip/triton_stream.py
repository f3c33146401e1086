"""Triton's client with callbacks on a stream: answers in order, a refusal inside, the last answer marked as such.

python triton_stream.py ADDRESS
"""

from __future__ import annotations

import json
import sys
from queue import SimpleQueue
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput


def sensor(length: int = 4) -> list[InferInput]:
    tensor = InferInput("sensor", [1, length], "FP32")
    tensor.set_data_from_numpy(np.ones((1, length), np.float32))
    return [tensor]


def main(address: str) -> None:
    answers: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def came(result: Any, error: Any) -> None:
        if error is not None:
            answers.put({"error": str(error)})
            return
        response = result.get_response()
        final = response.parameters["triton_final_response"].bool_param
        answers.put({"id": response.id, "final": final, "action": result.as_numpy("action")[0, 0].decode()})

    with InferenceServerClient(address) as client:
        client.start_stream(came)
        for number in range(5):
            client.async_stream_infer(
                "tiny",
                sensor(3 if number == 2 else 4),
                request_id=str(number),
                enable_empty_final_response=number == 4,
            )
        report = [answers.get(timeout=60) for _ in range(5)]
        client.stop_stream()
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
