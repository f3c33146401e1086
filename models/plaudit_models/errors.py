"""Errors about content that strangers send."""

from __future__ import annotations


class InvalidContent(ValueError):
    """Unusable content of one modality; the message names the modality, the value and the way out."""

    def __init__(self, modality: str, problem: str) -> None:
        super().__init__(modality, problem)
        self.modality = modality
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.modality}: {self.problem}"


class UnusableFile(ValueError):
    """Image or sound that cannot be taken; the message is the problem and the way out, without the modality's name."""
