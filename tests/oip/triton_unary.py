"""Triton's own client, one call at a time: everything it can ask of a server, against a server that runs.

    python triton_unary.py ADDRESS

In a process of its own: its messages and the server's have the same names, and protobuf keeps one of each per process.
Prints what it was answered, as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException


def tensors() -> list[InferInput]:
    """Two rows: a ready tensor and encoded texts."""
    sensor = InferInput("sensor", [2, 4], "FP32")
    sensor.set_data_from_numpy(np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32))
    question = InferInput("question", [2, 1], "BYTES")
    question.set_data_from_numpy(np.array([[b"which animal"], ["wie groß?".encode()]], np.object_))
    return [sensor, question]


def answered(result: Any) -> dict[str, Any]:
    response = result.get_response()
    found = {output.name: result.as_numpy(output.name).tolist() for output in response.outputs}
    for name in ("action", "prediction_id"):
        found[name] = [row[0].decode() for row in found[name]]
    return {"id": response.id, "version": response.model_version, **found}


def refused(client: InferenceServerClient) -> dict[str, str]:
    sensor = InferInput("sensor", [1, 3], "FP32")
    sensor.set_data_from_numpy(np.zeros((1, 3), np.float32))
    try:
        client.infer("tiny", [sensor])
    except InferenceServerException as error:
        return {"status": error.status(), "message": error.message()}
    raise AssertionError("a tensor of the wrong shape was taken")


def main(address: str) -> None:
    with InferenceServerClient(address) as client:
        config = client.get_model_config("tiny", as_json=True)["config"]
        metadata = client.get_model_metadata("tiny", as_json=True)
        report = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready("tiny"),
            "other_ready": client.is_model_ready("other"),
            "server": client.get_server_metadata(as_json=True)["name"],
            "inputs": [each["name"] for each in metadata["inputs"]],
            "config_outputs": [each["name"] for each in config["output"]],
            "index": client.get_model_repository_index(as_json=True)["models"],
            "answer": answered(
                client.infer("tiny", tensors(), request_id="r1", parameters={"user_id": "ada", "greedy": True})
            ),
            "chosen": [
                output.name
                for output in client.infer(
                    "tiny", tensors(), model_version="1", outputs=[InferRequestedOutput("embedding")]
                )
                .get_response()
                .outputs
            ],
            "refused": refused(client),
        }
        statistics = client.get_inference_statistics("tiny", as_json=True)["model_stats"][0]
        report["rows"] = int(statistics["inference_count"])
        client.unload_model("tiny")
        report["unloaded"] = not client.is_model_ready("tiny")
        client.load_model("tiny")
        report["loaded"] = client.is_model_ready("tiny")
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
