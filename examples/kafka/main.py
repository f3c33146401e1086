"""Kafka: one answer, one thumb, and its receipt until a version that learned from it is live."""

from __future__ import annotations

import io
import sys

from PIL import Image

from plaudit.client import Client


def main(target: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (30, 30, 200)).save(file, format="PNG")
    with Client(target) as client:
        answer = client.predict({"image": file.getvalue()}, user_id="ada")
        sent = client.thumbs_down(answer)
        for rollout in client.watch_versions():
            receipt = client.receipt(sent.feedback_id)
            print(f"version {rollout.live}: the thumb is {receipt.state}")
            if receipt.state == "live":
                break


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001")
