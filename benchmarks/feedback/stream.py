"""A client that streams thumbs as fast as they are acknowledged. Prints the rate as JSON.

It costs little itself: requests are written beforehand, acknowledgements are only read after the clock has stopped.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from plaudit.core.prediction_id import PredictionIds, SignedPrediction, load_or_create_key
from plaudit.v1 import feedback_pb2

_METHOD = "/plaudit.v1.FeedbackService/StreamFeedback"
_IDS = 1_000


def requests(key: Path, count: int, name: str) -> list[bytes]:
    ids = PredictionIds(load_or_create_key(key), 1e9)
    signed = [ids.sign(SignedPrediction(time.time(), "tiny", 1, "cat", 0.25)) for _ in range(_IDS)]
    return [
        feedback_pb2.SendFeedbackRequest(
            feedback_id=f"{name}-{number}",
            prediction_id=signed[number % _IDS],
            user_id=f"user {name}-{number}",
            thumb=feedback_pb2.THUMB_UP,
        ).SerializeToString()
        for number in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("key", type=Path, help="what prediction ids are signed with")
    parser.add_argument("--count", type=int, required=True, help="thumbs a stream")
    parser.add_argument("--streams", type=int, required=True)
    options = parser.parse_args()
    sent = [requests(options.key, options.count, f"s{stream}") for stream in range(options.streams)]
    answers: list[list[bytes]] = [[] for _ in sent]
    with grpc.insecure_channel(options.address) as channel:
        method: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(_METHOD)
        list(method(iter(requests(options.key, 500, "warm")), wait_for_ready=True))

        def stream(pieces: Iterator[bytes], answered: list[bytes]) -> None:
            answered.extend(method(pieces))

        threads = [
            threading.Thread(target=stream, args=(iter(pieces), answered))
            for pieces, answered in zip(sent, answers, strict=True)
        ]
        began_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took_s = time.perf_counter() - began_s
    statuses = [feedback_pb2.SendFeedbackResponse.FromString(each).status for part in answers for each in part]
    accepted = statuses.count(feedback_pb2.FEEDBACK_STATUS_ACCEPTED)
    if accepted != options.count * options.streams:
        raise SystemExit(f"{accepted} of {options.count * options.streams} thumbs were acknowledged")
    print(json.dumps({"per_s": accepted / took_s}))


if __name__ == "__main__":
    main()
