"""Every picture of the field is its pixels, or refused in a sentence that helps."""

from __future__ import annotations

import numpy as np
import pytest

from field import images
from field.case import Case
from plaudit_models.errors import InvalidContent
from plaudit_models.media.images import decode_image
from plaudit_models.spec import ImageModality


def check(case: Case) -> None:
    """The same pixels at the file's own size; refused with the same words."""
    if case.refused:
        with pytest.raises(InvalidContent, match=f"(?s){case.refused}") as refusal:
            decode_image(case.data, ImageModality(8, 8, 3), name="photo")
        assert len(refusal.value.problem) < 500
        return
    assert case.pixels is not None
    height, width = case.pixels.shape[:2]
    decoded = decode_image(case.data, ImageModality(height, width, 3), name="photo")
    np.testing.assert_allclose(decoded.transpose(1, 2, 0) * 255, case.pixels, atol=255 * case.tolerance, rtol=0)


@pytest.mark.parametrize("case", list(images.reported()), ids=str)
def test_reported(case: Case) -> None:
    """What people met in public; the address is in the case."""
    assert case.report
    check(case)


@pytest.mark.parametrize("case", list(images.refused()), ids=str)
def test_refused(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", [*images.oriented(), *images.animated()], ids=str)
def test_turned_and_animated(case: Case) -> None:
    check(case)


def test_ordinary() -> None:
    """Each mode in each format with each option, at one size."""
    cases = list(images.ordinary())
    assert len(cases) > 150
    for case in cases:
        check(case)


@pytest.mark.field
@pytest.mark.parametrize("size", images.SIZES[1:], ids=str)
def test_ordinary_at_other_sizes(size: tuple[int, int]) -> None:
    for case in images.ordinary((size,)):
        check(case)
