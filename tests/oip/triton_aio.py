"""Triton's asyncio client: many calls at once, each gets its own answer; and a stream.

python triton_aio.py ADDRESS
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient


def sensor(number: int) -> list[InferInput]:
    tensor = InferInput("sensor", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.full((1, 4), number / 8, np.float32))
    return [tensor]


def probabilities(result: Any) -> list[float]:
    found: list[float] = result.as_numpy("probabilities")[0].tolist()
    return found


async def main(address: str) -> None:
    async with InferenceServerClient(address) as client:
        alone = [probabilities(await client.infer("tiny", sensor(number))) for number in range(8)]
        together = await asyncio.gather(
            *(client.infer("tiny", sensor(number % 8), request_id=str(number)) for number in range(64))
        )

        async def requests() -> AsyncIterator[dict[str, Any]]:
            for number in range(8):
                yield {"model_name": "tiny", "inputs": sensor(number), "request_id": str(number)}

        streamed = [(result, error) async for result, error in client.stream_infer(requests())]
    print(
        json.dumps(
            {
                "alone": alone,
                "together": [(result.get_response().id, probabilities(result)) for result in together],
                "streamed": [(result.get_response().id, probabilities(result)) for result, _ in streamed],
                "errors": [str(error) for _, error in streamed if error is not None],
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
