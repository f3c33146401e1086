"""The model contract: what is refused, and what every release must go on reading."""

from __future__ import annotations

from typing import Any

import pytest

from plaudit_models.spec import (
    ImageModality,
    InvalidSpec,
    ModelSpec,
    OutputSpec,
    TensorModality,
    TextModality,
    spec_from_dict,
)

ACTIONS = ("yes", "no")


def with_tensor(name: str, **fields: object) -> ModelSpec:
    return ModelSpec("m", {name: TensorModality(**fields)}, ACTIONS)  # type: ignore[arg-type]


def test_defaults_are_not_written_so_that_digests_of_old_versions_stay() -> None:
    spec = ModelSpec("m", {"radar": TensorModality((4,)), "question": TextModality(8)}, ACTIONS, 16)
    assert spec.to_dict() == {
        "name": "m",
        "modalities": {"radar": {"shape": (4,), "kind": "tensor"}, "question": {"max_tokens": 8, "kind": "text"}},
        "actions": ["yes", "no"],
        "embedding_size": 16,
    }
    assert spec_from_dict(spec.to_dict()) == spec


def test_what_an_imported_graph_needs_is_read_back() -> None:
    spec = ModelSpec(
        "m",
        {"Input.ids:0": TensorModality((-1, 2), dtype="int64", required=True)},
        ACTIONS,
        outputs={"logits": OutputSpec("float32", (2,)), "heat": OutputSpec("float16", (-1, 7))},
    )
    assert spec_from_dict(spec.to_dict()) == spec
    assert spec.has_free_lengths
    assert spec.all_required


def test_one_that_may_be_missing_needs_to_be_told_from_zeros() -> None:
    required, optional = TensorModality((2,), required=True), TensorModality((2,))
    assert not ModelSpec("m", {"a": required, "b": optional}, ACTIONS).all_required
    assert not ModelSpec("m", {"a": required}, ACTIONS).has_free_lengths


@pytest.mark.parametrize(
    ("name", "fields", "problem"),
    [
        ("x", {"shape": (2,), "dtype": "complex64"}, r"model\.modalities\.x\.dtype: 'complex64' is not one of"),
        ("x", {"shape": (-1,)}, r"shape \(-1,\) must be positive integers \(or -1, in a tensor that is required\)"),
        ("x", {"shape": (0,), "required": True}, r"shape \(0,\) must be positive integers"),
        ("Input.ids:0", {"shape": (2,)}, r"model\.modalities\.Input\.ids:0: the name must match"),
        ("a b", {"shape": (2,)}, r"model\.modalities\.a b: the name must match"),
        ("a\n", {"shape": (2,), "required": True}, r"model\.modalities\.a\n: the name must match"),
        ("x", {"shape": (-1,), "required": True, "max_length": 0}, r"x\.max_length: 0 must be a positive integer"),
        ("present", {"shape": (2,), "required": True}, r"model\.modalities\.present: .* not be reserved"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_named(name: str, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidSpec, match=problem):
        with_tensor(name, **fields)


# --- what clients of one can send to another --------------------------------------------------------------------------


def a_spec(**modalities: Any) -> ModelSpec:
    return ModelSpec("m", modalities, ("cat", "dog"), 8)


@pytest.mark.parametrize(
    ("ours", "theirs", "difference"),
    [
        ({"x": ImageModality(8, 8)}, {"x": ImageModality(16, 16)}, ""),  # an encoded image is one all the same
        ({"x": ImageModality(8, 8, required=True)}, {"x": ImageModality(8, 8)}, ""),
        ({"x": ImageModality(8, 8)}, {"x": ImageModality(8, 8, required=True)}, "modality 'x' may not be left out"),
        ({"x": ImageModality(8, 8)}, {"y": ImageModality(8, 8)}, "it takes ['y'] and not ['x']"),
        ({"x": ImageModality(8, 8)}, {"x": TextModality(4)}, "modality 'x' is of kind text and not image"),
        (
            {"x": TensorModality((3, 4))},
            {"x": TensorModality((4, 3))},
            "modality 'x' is of shape [4, 3] and not [3, 4]",
        ),
    ],
)
def test_what_another_model_cannot_take(ours: dict[str, Any], theirs: dict[str, Any], difference: str) -> None:
    assert a_spec(**ours).difference(a_spec(**theirs)) == difference
