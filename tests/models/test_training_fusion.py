"""The fusion policy: its contract for any mix of modalities, missing ones, and the log-mel front end."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from plaudit_models.spec import AudioModality, ImageModality, Modality, ModelSpec, TensorModality, TextModality
from plaudit_models.training.networks.fusion import FusionConfig, FusionPolicy, LogMel
from support.builders import tiny_spec

CONFIG = FusionConfig(vocabulary_size=50, width=16, layers=1, attention_heads=2)
ACTIONS = ("left", "right", "stop")
MIXES: dict[str, Mapping[str, Modality]] = {
    "one of each kind": tiny_spec().modalities,
    "tensors of every rank": {
        "scalar": TensorModality((1,)),
        "lidar": TensorModality((3, 20)),
        "radar": TensorModality((2, 9, 12)),
        "volume": TensorModality((2, 2, 2, 2)),
    },
    "two images": {"front": ImageModality(20, 30, 3), "back": ImageModality(3, 3, 1)},
    "text alone": {"case": TextModality(1)},
    "a very short sound": {"click": AudioModality(8_000, 0.01)},
}


def _spec(modalities: Mapping[str, Modality]) -> ModelSpec:
    return ModelSpec("mix", modalities, ACTIONS, embedding_size=6)


def _policy(spec: ModelSpec) -> FusionPolicy:
    torch.manual_seed(0)
    return FusionPolicy(spec, CONFIG).eval()


def _contents(spec: ModelSpec, b: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(1, CONFIG.vocabulary_size, (b, *modality.shape), generator=generator)
        if modality.kind == "text"
        else torch.rand(b, *modality.shape, generator=generator)
        for modality in spec.modalities.values()
    ]


@pytest.mark.parametrize("mix", MIXES)
def test_any_mix_of_modalities_gives_embedding_and_logits_and_can_be_trained(mix: str) -> None:
    spec = _spec(MIXES[mix])
    policy = _policy(spec).train()
    embedding, logits = policy(*_contents(spec, 5), torch.ones(5, len(spec.modalities)))
    assert (embedding.shape, logits.shape) == ((5, 6), (5, 3))
    assert embedding.abs().max() < 1
    logits.logsumexp(dim=1).sum().backward()
    unused = [name for name, weight in policy.named_parameters() if weight.grad is None]
    assert unused == []


@pytest.mark.parametrize("mix", MIXES)
def test_a_missing_modality_has_no_influence_whatever_stands_in_its_place(mix: str) -> None:
    spec = _spec(MIXES[mix])
    policy = _policy(spec)
    contents = _contents(spec, 2)
    for i, modality in enumerate(spec.modalities.values()):
        present = torch.ones(2, len(spec.modalities))
        present[:, i] = 0
        expected = policy(*contents, present)
        for other in (_contents(spec, 2, seed=9)[i], torch.zeros_like(contents[i])):
            replaced = [*contents[:i], other, *contents[i + 1 :]]
            torch.testing.assert_close(policy(*replaced, present), expected, rtol=0, atol=0)
        if modality.kind != "text":
            replaced = [*contents[:i], torch.full_like(contents[i], math.nan), *contents[i + 1 :]]
            torch.testing.assert_close(policy(*replaced, present), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", tiny_spec().modalities)
def test_a_given_modality_has_influence(name: str) -> None:
    spec = tiny_spec()
    policy = _policy(spec)
    i = list(spec.modalities).index(name)
    contents, others = _contents(spec, 2), _contents(spec, 2, seed=9)
    present = torch.ones(2, len(spec.modalities))
    logits = policy(*contents, present)[1]
    changed = policy(*contents[:i], others[i], *contents[i + 1 :], present)[1]
    present[:, i] = 0
    missing = policy(*contents, present)[1]
    assert (logits - changed).abs().max() > 1e-6
    assert (logits - missing).abs().max() > 1e-6


def test_text_that_is_all_padding_stays_finite() -> None:
    spec = _spec({"case": TextModality(4)})
    embedding, logits = _policy(spec)(torch.zeros(2, 4, dtype=torch.int64), torch.ones(2, 1))
    assert embedding.isfinite().all()
    assert logits.isfinite().all()


def test_padding_after_a_text_does_not_change_it() -> None:
    spec = _spec({"case": TextModality(6)})
    policy = _policy(spec)
    short, long = torch.tensor([[3, 4, 5]]), torch.tensor([[3, 4, 5, 0, 0, 0]])
    torch.testing.assert_close(policy.encode("case", short), policy.encode("case", long))


def test_log_mel_puts_a_tone_into_the_band_of_its_frequency() -> None:
    """8 kHz, 40 bands: the mel scale ends at 2595·log10(1 + 4000/700) = 2146.06, so centres are 2146.06/41 = 52.34 mel
    apart. 1000 Hz is 999.99 mel, 999.99/52.34 = 19.1: nearest to centre 19, which is the band of index 18."""
    front_end = LogMel(8_000, 8_000)
    tone = torch.sin(2 * math.pi * 1_000 * torch.arange(8_000) / 8_000)[None]
    log_mel = front_end(0.1 * tone)
    assert log_mel.shape == (1, 40, 61)  # (8000 − 256) / 128 + 1 windows
    assert set(log_mel[0].argmax(dim=0).tolist()) == {18}
    # Twice the amplitude is four times the power.
    louder = front_end(0.2 * tone)
    torch.testing.assert_close((louder - log_mel)[0, 18], torch.full((61,), math.log(4)), rtol=0, atol=1e-3)


def test_log_mel_of_silence_is_the_floor() -> None:
    log_mel = LogMel(8_000, 1_000)(torch.zeros(1, 1_000))
    torch.testing.assert_close(log_mel, torch.full_like(log_mel, math.log(1e-7)))


@pytest.mark.parametrize(("sample_rate_hz", "samples"), [(8_000, 800), (16_000, 32_000), (44_100, 44_100), (8_000, 40)])
def test_every_mel_band_hears_something(sample_rate_hz: int, samples: int) -> None:
    front_end = LogMel(sample_rate_hz, samples)
    assert (front_end.mel.sum(dim=(1, 2)) > 0).all()
