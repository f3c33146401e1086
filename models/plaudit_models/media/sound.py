"""What is known of an encoded sound before it is decoded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sound:
    """Bytes for the decoder: what makes samples, without metadata.

    Attributes:
        is_noisy: its decoder writes of damage to stderr.
        duration_s: counted duration; None where the decoder knows it.
        is_open_ended: nothing says how long the sound is, so that its end is where the samples end.
    """

    data: bytes
    is_open_ended: bool = False
    duration_s: float | None = None
    is_noisy: bool = False
