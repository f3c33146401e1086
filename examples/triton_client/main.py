"""Triton's client: two images in one request, as encoded bytes; then a thumb for each answer."""

from __future__ import annotations

import io
import sys

import numpy as np
import tritonclient.grpc as triton
from PIL import Image

from plaudit.client import Client

MODEL = "squares"


def encoded(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(file, format="PNG")
    return file.getvalue()


def main(target: str) -> None:
    images = np.array([[encoded((200, 30, 30))], [encoded((30, 30, 200))]], np.object_)
    rows = triton.InferInput("image", list(images.shape), "BYTES")
    rows.set_data_from_numpy(images)
    wanted = [triton.InferRequestedOutput(name) for name in ("action", "propensity", "prediction_id")]
    server = triton.InferenceServerClient(target)
    result = server.infer(MODEL, [rows], outputs=wanted, parameters={"user_id": "ada"})
    server.close()
    with Client(target) as client:
        for row, right in enumerate(("red", "blue")):
            action = result.as_numpy("action")[row, 0].decode()
            print(f"{action} with probability {result.as_numpy('propensity')[row, 0]:.2f}")
            client.correct(result.as_numpy("prediction_id")[row, 0].decode(), right, user_id="ada")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001")
