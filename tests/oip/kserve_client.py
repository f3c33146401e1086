"""KServe's own client: raw tensors, typed contents and encoded texts.

    python kserve_client.py ADDRESS

Runs in an environment of its own, since its requirements do not fit ours. Prints what it was answered, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest


def inputs() -> dict[str, InferInput]:
    raw = InferInput("sensor", [1, 4], "FP32")
    raw.set_data_from_numpy(np.array([[1, 2, 3, 4]], np.float32), binary_data=True)
    return {
        "raw": raw,
        "typed": InferInput("sensor", [1, 4], "FP32", data=[1.0, 2.0, 3.0, 4.0]),
        "text": InferInput("question", [1, 1], "BYTES", data=["which animal"]),
    }


async def answered(client: InferenceGRPCClient, request_id: str, tensor: InferInput) -> dict[str, Any]:
    request = InferRequest("tiny", [tensor], request_id=request_id, parameters={"user_id": "ada", "greedy": True})
    response = await client.infer(request)
    outputs = {output.name: output.as_numpy() for output in response.outputs}
    return {
        "id": response.id,
        "version": response.model_version,
        "probabilities": outputs["probabilities"].tolist(),
        "prediction_id": outputs["prediction_id"][0][0].decode(),
    }


async def refused(client: InferenceGRPCClient) -> str:
    try:
        await client.infer(InferRequest("tiny", [InferInput("sensor", [1, 3], "FP32", data=[1.0, 2.0, 3.0])]))
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    raise AssertionError("a tensor of the wrong shape was taken")


async def main(address: str) -> None:
    client = InferenceGRPCClient(address)
    report = {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "model_ready": await client.is_model_ready("tiny"),
        "answers": {name: await answered(client, name, tensor) for name, tensor in inputs().items()},
        "refused": await refused(client),
    }
    await client.close()
    print(json.dumps(report))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
