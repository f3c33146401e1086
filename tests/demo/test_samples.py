"""The demo's examples for the playground."""

from __future__ import annotations

import io

import pytest
import soundfile
from PIL import Image

from plaudit.demo.samples import DemoSamples
from plaudit.demo.speech import SAMPLE_RATE_HZ
from plaudit.demo.task import SPEC


@pytest.fixture(scope="module")
def samples() -> DemoSamples:
    return DemoSamples(seed=0)


def test_there_are_examples_for_every_modality(samples: DemoSamples) -> None:
    offered = samples.offered()
    assert list(offered) == list(SPEC.modalities)
    assert (len(offered["image"]), len(offered["audio"]), len(offered["question"])) == (10, 10, 15)
    assert len(set(offered["question"])) == 15


def test_every_example_is_what_it_is_called(samples: DemoSamples) -> None:
    for modality, media_type in (("image", "image/png"), ("audio", "audio/wav")):
        for name in samples.offered()[modality]:
            content, found = samples.content(modality, name)
            assert found == media_type
            if modality == "image":
                assert Image.open(io.BytesIO(content)).size == (8, 8)
            else:
                assert soundfile.info(io.BytesIO(content)).samplerate == SAMPLE_RATE_HZ


def test_another_call_may_give_another_example(samples: DemoSamples) -> None:
    assert len({samples.content("image", "7")[0] for _ in range(20)}) > 1


@pytest.mark.parametrize(
    ("modality", "name"), [("image", "10"), ("audio", "ten"), ("question", "what?"), ("smell", "7")]
)
def test_what_is_not_offered_is_refused(samples: DemoSamples, modality: str, name: str) -> None:
    with pytest.raises(KeyError):
        samples.content(modality, name)
