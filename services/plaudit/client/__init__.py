"""Client of a Plaudit server: :class:`Client` for threads, :class:`AsyncClient` for asyncio. Needs grpcio and protobuf.

from plaudit.client import Client

with Client("127.0.0.1:8001") as client:
    answer = client.predict({"image": Path("cat.png"), "text": "what is this?"}, user_id="ada")
    client.thumbs_up(answer)
"""

from plaudit.client import feedback
from plaudit.client.aio import AsyncClient
from plaudit.client.content import audio, image, tensor, text
from plaudit.client.errors import ClientError
from plaudit.client.results import Acknowledgement, Prediction, Receipt, RolloutSnapshot, Version, Versions
from plaudit.client.sync import Client

__all__ = [
    "Acknowledgement",
    "AsyncClient",
    "Client",
    "ClientError",
    "Prediction",
    "Receipt",
    "RolloutSnapshot",
    "Version",
    "Versions",
    "audio",
    "feedback",
    "image",
    "tensor",
    "text",
]
