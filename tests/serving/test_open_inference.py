"""Open Inference Protocol messages ↔ rows and answers: every datatype both ways, and every mistake by its name."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.core.errors import InvalidInput
from plaudit.core.events import EncodedContent, Role, TensorContent, TextContent
from plaudit.inference import open_inference_pb2 as pb
from plaudit.serving.engine.action_sets import fixed_actions
from plaudit.serving.engine.evaluator import Evaluation
from plaudit.serving.engine.pipeline import Outcome, Predictions
from plaudit.serving.grpc.open_inference.converters import (
    DTYPES,
    Contract,
    prediction_request,
    streamed,
    streamed_error,
    user_of,
    version_of,
)
from plaudit_models.spec import ModelSpec, OutputSpec, TensorModality
from support.builders import png, tiny_spec
from support.serving_harness import array_of, text_of

MAX_ROWS = 8


def a_model(spec: ModelSpec, *, version: int = 3) -> Any:
    return SimpleNamespace(manifest=SimpleNamespace(spec=spec, version=version), digest="d1" * 32)


def tensors(outputs: dict[str, OutputSpec] | None = None, **modalities: TensorModality) -> Contract:
    return Contract(a_model(ModelSpec("m", modalities, ("yes", "no"), 2, outputs or {})))


TINY = Contract(a_model(tiny_spec()))


def raw(array: Any, datatype: str) -> bytes:
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(each)) + each for each in array)
    return np.ascontiguousarray(array).tobytes()


def a_message(*inputs: tuple[str, str, list[int], bytes], **fields: Any) -> pb.ModelInferRequest:
    """Each input: name, datatype, shape, raw contents."""
    message = pb.ModelInferRequest(**fields)
    for name, datatype, shape, data in inputs:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(data)
    return message


def sensor(array: Any = ((1.0, 2.0, 3.0, 4.0),)) -> tuple[str, str, list[int], bytes]:
    array = np.asarray(array, np.float32)
    return "sensor", "FP32", list(array.shape), array.tobytes()


def refusal(contract: Contract, message: pb.ModelInferRequest) -> str:
    with pytest.raises(InvalidInput) as refused:
        contract.rows(message, max_rows=MAX_ROWS)
    return str(refused.value)


# --- inputs ----------------------------------------------------------------------------------------------------------


VALUES = {"BOOL": [[[True, False]], [[False, False]]], "FP16": [[[0.5, -2.0]], [[3.0, 0.0]]]}


def values(datatype: str) -> np.ndarray[Any, Any]:
    """``[2, 1, 2]``, with the extremes of whole numbers."""
    dtype = DTYPES[datatype]
    if dtype.kind in "iu":
        extremes = [np.iinfo(dtype).min, np.iinfo(dtype).max]
        return np.array([[extremes], [[0, 1]]], dtype)
    return np.array(VALUES.get(datatype, [[[0.1, -2.5]], [[1e30, 0.0]]]), dtype)


def wide(datatype: str) -> Contract:
    return tensors(x=TensorModality((1, 2), dtype=DTYPES[datatype].name, required=True))


@pytest.mark.parametrize("datatype", DTYPES)
def test_raw_contents_of_every_datatype(datatype: str) -> None:
    expected = values(datatype)
    rows = wide(datatype).rows(a_message(("x", datatype, [2, 1, 2], expected.tobytes())), max_rows=MAX_ROWS)
    assert len(rows) == 2
    for row, wanted in zip(rows, expected, strict=True):
        array = array_of(row["x"])
        assert (array.dtype, array.shape) == (expected.dtype, (1, 2))
        np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize(
    ("datatype", "field"),
    [
        ("BOOL", "bool_contents"),
        ("UINT8", "uint_contents"),
        ("UINT16", "uint_contents"),
        ("UINT32", "uint_contents"),
        ("UINT64", "uint64_contents"),
        ("INT8", "int_contents"),
        ("INT16", "int_contents"),
        ("INT32", "int_contents"),
        ("INT64", "int64_contents"),
        ("FP32", "fp32_contents"),
        ("FP64", "fp64_contents"),
    ],
)
def test_typed_contents(datatype: str, field: str) -> None:
    expected = values(datatype)
    message = pb.ModelInferRequest()
    tensor = message.inputs.add(name="x", datatype=datatype, shape=[2, 1, 2])
    getattr(tensor.contents, field).extend(expected.ravel().tolist())
    rows = wide(datatype).rows(message, max_rows=MAX_ROWS)
    np.testing.assert_array_equal([array_of(row["x"]) for row in rows], expected)
    assert array_of(rows[0]["x"]).dtype == expected.dtype


def test_raw_tensors_are_views_of_what_arrived() -> None:
    for n in (1, 3):
        rows = TINY.rows(a_message(sensor(np.ones((n, 4)))), max_rows=MAX_ROWS)
        flags = [array_of(row["sensor"]).flags for row in rows]
        assert not any(each.owndata or each.writeable for each in flags)


def test_bytes_are_what_their_modality_is() -> None:
    """An image, a sound, a text a row; raw or typed; of shape [n, 1] or [n]."""
    texts = ["wie groß?".encode(), b"which animal"]
    for shape in ([2, 1], [2]):
        message = a_message(
            ("image", "BYTES", shape, raw([png(0), png(1)], "BYTES")),
            ("audio", "BYTES", shape, raw([b"one", b"two"], "BYTES")),
            ("question", "BYTES", shape, raw(texts, "BYTES")),
        )
        first, second = TINY.rows(message, max_rows=MAX_ROWS)
        assert first == {
            "image": EncodedContent("image", png(0)),
            "audio": EncodedContent("audio", b"one"),
            "question": TextContent("wie groß?"),
        }
        assert second["question"] == TextContent("which animal")
    typed = pb.ModelInferRequest()
    typed.inputs.add(name="question", datatype="BYTES", shape=[2, 1]).contents.bytes_contents.extend(texts)
    assert [text_of(row["question"]) for row in TINY.rows(typed, max_rows=MAX_ROWS)] == ["wie groß?", "which animal"]


def test_free_lengths_are_the_request_s() -> None:
    contract = tensors(x=TensorModality((-1, 2), dtype="float32", required=True))
    rows = contract.rows(a_message(("x", "FP32", [1, 3, 2], bytes(24))), max_rows=MAX_ROWS)
    assert array_of(rows[0]["x"]).shape == (3, 2)
    assert "should be [n, -1, 2]" in refusal(contract, a_message(("x", "FP32", [1, 0, 2], b"")))


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (a_message(), ["inputs: is empty", "'image', 'audio', 'question', 'sensor'"]),
        (a_message(("radar", "FP32", [1, 4], bytes(16))), ['inputs["radar"]', "there are ['image'"]),
        (a_message(sensor(), sensor()), ['inputs["sensor"]: is there twice']),
        (a_message(("sensor", "FP64", [1, 4], bytes(32))), ['inputs["sensor"].datatype', "'FP64'", "send FP32"]),
        (a_message(("sensor", "BYTES", [1, 1], raw([b"x"], "BYTES"))), ["'BYTES' is none that this input takes"]),
        (a_message(("image", "INT8", [1, 1, 8, 8], bytes(64))), ["send FP32, or BYTES with encoded images"]),
        (a_message(("sensor", "FP32", [4], bytes(16))), ['inputs["sensor"].shape: [4] should be [n, 4]']),
        (a_message(("sensor", "FP32", [], bytes(16))), ["[] should be [n, 4]"]),
        (a_message(("sensor", "FP32", [0, 4], b"")), ["[0, 4] should be [n, 4]"]),
        (a_message(("sensor", "FP32", [-1, -4], bytes(16))), ["[-1, -4] should be [n, 4]"]),
        (a_message(("sensor", "FP32", [9, 4], bytes(144))), ["[9, 4] has more than 8 rows"]),
        (a_message(("sensor", "FP32", [2**62, 4], b"")), ["has more than 8 rows"]),
        (a_message(sensor(), ("question", "BYTES", [2], raw([b"a", b"b"], "BYTES"))), ["has 2 rows, but", "has 1"]),
        (a_message(("sensor", "FP32", [1, 4], bytes(15))), ["is 15 bytes; FP32 of shape [1, 4] is 16"]),
        (a_message(("question", "BYTES", [1, 2], raw([b"a", b"b"], "BYTES"))), ["[1, 2] should be [n, 1]"]),
        (a_message(("question", "BYTES", [0], b"")), ["[0] should be [n, 1]", "UTF-8 texts"]),
        (a_message(("question", "BYTES", [1], b"\x01\x00")), ["is 2 bytes, which end before row 0 of 1 begins"]),
        (a_message(("question", "BYTES", [1], b"\xff\xff\xff\xffabc")), ["row 0 says that it ends at 4294967299"]),
        (a_message(("question", "BYTES", [1], raw([b"a", b"b"], "BYTES"))), ["is 10 bytes, but its 1 rows end at 5"]),
        (a_message(("question", "BYTES", [1], raw([b"\xff\xfe"], "BYTES"))), ["is not UTF-8", "at byte 0"]),
    ],
)
def test_what_is_wrong_with_inputs_is_named(message: pb.ModelInferRequest, named: list[str]) -> None:
    text = refusal(TINY, message)
    assert all(part in text for part in named), text


def test_what_is_wrong_with_typed_contents_is_named() -> None:
    message = pb.ModelInferRequest()
    tensor = message.inputs.add(name="sensor", datatype="FP32", shape=[1, 4])
    tensor.contents.fp32_contents.extend([1.0, 2.0])
    assert 'inputs["sensor"].contents.fp32_contents: holds 2 values' in refusal(TINY, message)
    message.raw_input_contents.append(bytes(16))
    assert "is given beside raw_input_contents" in refusal(TINY, message)
    message.raw_input_contents.append(bytes(16))
    assert "raw_input_contents: holds 2 tensors for 1 inputs" in refusal(TINY, message)

    half = pb.ModelInferRequest()
    half.inputs.add(name="x", datatype="FP16", shape=[1, 1, 2])
    assert "cannot hold FP16; send it in raw_input_contents" in refusal(wide("FP16"), half)
    small = pb.ModelInferRequest()
    small.inputs.add(name="x", datatype="INT8", shape=[1, 1, 2]).contents.int_contents.extend([1, 128])
    assert "holds values beyond INT8" in refusal(wide("INT8"), small)


def test_shared_memory_is_refused_not_passed_over() -> None:
    message = a_message(sensor())
    message.inputs[0].parameters["shared_memory_region"].string_param = "region"
    assert "shared memory is not served" in refusal(TINY, message)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["image", "question", "sensor", "other"]),
            st.sampled_from([*DTYPES, "BYTES", "BF16", ""]),
            st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), max_size=5),
            st.binary(max_size=64),
        ),
        max_size=3,
    )
)
def test_whatever_comes_is_refused_or_fits(inputs: list[tuple[str, str, list[int], bytes]]) -> None:
    try:
        rows = TINY.rows(a_message(*inputs), max_rows=MAX_ROWS)
    except InvalidInput:
        return
    assert 1 <= len(rows) <= MAX_ROWS
    for row in rows:
        for name, content in row.items():
            if isinstance(content, TensorContent):
                assert content.array.shape == tiny_spec().modalities[name].shape


# --- parameters ------------------------------------------------------------------------------------------------------


def request(**parameters: Any) -> Any:
    message = a_message(sensor(), id="r1", model_name="tiny")
    for name, value in parameters.items():
        kind = {str: "string_param", bool: "bool_param", int: "int64_param"}[type(value)]
        setattr(message.parameters[name], kind, value)
    return prediction_request(
        message, TINY.rows(message, max_rows=MAX_ROWS), TINY.choice(message.outputs), user_of(message)
    )


def test_parameters_say_who_asks_and_what_may_be_picked() -> None:
    plain = request()
    assert (plain.user_id, plain.allowed_actions, plain.greedy) == ("", (), False)
    assert (plain.model, plain.request_id, plain.outputs) == ("tiny", "r1", ())
    asked = request(user_id="ada", allowed_actions="cat, dog", greedy=True, sequence_id=0)
    assert (asked.user_id, asked.allowed_actions, asked.greedy) == ("ada", ("cat", "dog"), True)
    assert (plain.user_group, request(user_group="premium").user_group) == ("", "premium")
    assert request(allowed_actions='["cat, the", "dog"]').allowed_actions == ("cat, the", "dog")


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"user_id": 7}, "parameters['user_id']: int64_param: 7 is not a string"),
        ({"user_group": 7}, "parameters['user_group']: int64_param: 7 is not a string"),
        ({"user_group": "all of them"}, "parameters['user_group']: 'all of them' is not a group label"),
        ({"greedy": "yes"}, "parameters['greedy']: string_param: \"yes\" is not a bool"),
        ({"allowed_actions": True}, "parameters['allowed_actions']: bool_param: true is not a string"),
        ({"allowed_actions": '["cat"'}, "is not a JSON list"),
        ({"allowed_actions": '["cat", 3]'}, "is not a list of strings"),
        ({"allowed_actions": "[" * 100_000}, "is not a JSON list"),
    ],
)
def test_what_is_wrong_with_parameters_is_named(parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        request(**parameters)
    assert named in str(refused.value)


def test_versions_are_numbers() -> None:
    assert (version_of(""), version_of("12")) == (None, 12)
    for text in ("live", "-1", "1.0", "٣", "9" * 30):
        with pytest.raises(InvalidInput, match="model_version"):
            version_of(text)


def test_the_user_is_known_before_the_version_is_picked() -> None:
    message = pb.ModelInferRequest()
    assert user_of(message) == ""
    message.parameters["user_id"].string_param = "ada"
    assert user_of(message) == "ada"


# --- outputs ---------------------------------------------------------------------------------------------------------


def chosen(contract: Contract, *names: str) -> Any:
    return contract.choice([pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in names])


def an_answer(contract_model: Any, rows: int = 2, native: Any = None, role: Role = Role.LIVE) -> Predictions:
    spec = contract_model.manifest.spec
    return Predictions(
        contract_model,
        role,
        fixed_actions(spec, ()),
        [
            Outcome(
                action=spec.actions[row % len(spec.actions)],
                evaluation=Evaluation(
                    embedding=np.full(spec.embedding_size, row, np.float32),
                    base_logits=np.zeros(len(spec.actions), np.float32),
                    probabilities=np.linspace(row, 1.0, len(spec.actions)),
                    action=row % len(spec.actions),
                    propensity=0.25 + row,
                    native={name: values[row] for name, values in (native or {}).items()},
                ),
                prediction_id=f"prediction-{row}",
            )
            for row in range(rows)
        ],
    )


def read(data: bytes) -> tuple[pb.ModelInferResponse, dict[str, Any]]:
    """The response, and its outputs as arrays."""
    response = pb.ModelInferResponse.FromString(data)
    found = {}
    for output, contents in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            elements, at = [], 0
            while at < len(contents):
                (size,) = struct.unpack_from("<I", contents, at)
                elements.append(contents[at + 4 : at + 4 + size])
                at += 4 + size
            found[output.name] = np.array(elements, object).reshape(output.shape)
        else:
            found[output.name] = np.frombuffer(contents, DTYPES[output.datatype]).reshape(output.shape)
    return response, found


def test_all_outputs_of_several_rows() -> None:
    model = a_model(tiny_spec())
    response, found = read(chosen(TINY).response(an_answer(model), "r1"))
    assert (response.model_name, response.model_version, response.id) == ("tiny", "3", "r1")
    assert {name: value.string_param for name, value in response.parameters.items()} == {
        "version_digest": model.digest,
        "role": "live",
    }
    assert list(found) == ["probabilities", "embedding", "action", "propensity", "prediction_id"]
    np.testing.assert_allclose(found["probabilities"], [[0.0, 1 / 3, 2 / 3, 1.0], [1.0, 1.0, 1.0, 1.0]], rtol=1e-6)
    np.testing.assert_array_equal(found["embedding"], [[0.0] * 8, [1.0] * 8])
    assert found["action"].tolist() == [[b"cat"], [b"dog"]]
    assert found["propensity"].tolist() == [[0.25], [1.25]]
    assert found["prediction_id"].tolist() == [[b"prediction-0"], [b"prediction-1"]]


def test_a_prepared_response_is_used_only_where_it_fits() -> None:
    """The same choice of outputs for another number of rows, another role, another version."""
    choice = chosen(TINY, "action")
    for version, rows, role in ((3, 1, Role.LIVE), (3, 2, Role.LIVE), (3, 1, Role.CANDIDATE), (4, 1, Role.LIVE)):
        model = a_model(tiny_spec(), version=version)
        model.digest = f"digest of {version}"
        for _ in range(2):
            response, found = read(choice.response(an_answer(model, rows, role=role), ""))
            assert (response.model_version, response.id) == (str(version), "")
            assert response.parameters["role"].string_param == role.value
            assert response.parameters["version_digest"].string_param == f"digest of {version}"
            assert len(found["action"]) == rows


def test_outputs_come_in_the_order_they_were_asked_for() -> None:
    _, found = read(chosen(TINY, "propensity", "probabilities").response(an_answer(a_model(tiny_spec())), ""))
    assert list(found) == ["propensity", "probabilities"]


def test_native_outputs_go_before_ours_of_the_same_name() -> None:
    """Numbers, strings, and a shape that only the answer tells; what numpy does not know is not offered."""
    outputs = {
        "scores": OutputSpec("float16", (2,)),
        "embedding": OutputSpec("int64", ()),
        "words": OutputSpec("object", (2,)),
        "boxes": OutputSpec("float32", (-1, 2)),
        "odd": OutputSpec("bfloat16", (2,)),
    }
    spec = ModelSpec("m", {"x": TensorModality((1,), required=True)}, ("yes", "no"), 2, outputs)
    contract = Contract(a_model(spec))
    assert list(contract.outputs) == [
        *("scores", "embedding", "words", "boxes"),
        *("probabilities", "action", "propensity", "prediction_id"),
    ]
    native: dict[str, Any] = {
        "scores": np.array([[1, 2], [3, 4]], np.float16),
        "embedding": np.array([7, 8]),
        "words": np.array([["a", "ö"], ["", "d"]], object),
        "boxes": np.arange(12, dtype=np.float32).reshape(2, 3, 2),
    }
    choice = chosen(contract)
    assert choice.native == ("scores", "embedding", "words", "boxes")
    _, found = read(choice.response(an_answer(a_model(spec), native=native), ""))
    for name in ("scores", "embedding", "boxes"):
        np.testing.assert_array_equal(found[name], native[name])
        assert found[name].dtype == native[name].dtype
    assert found["words"].tolist() == [[b"a", "ö".encode()], [b"", b"d"]]

    native["boxes"] = [np.zeros((1, 2), np.float32), np.zeros((4, 2), np.float32)]
    with pytest.raises(InvalidInput, match="another shape for each row"):
        choice.response(an_answer(a_model(spec), native=native), "")


def test_contents_longer_than_one_and_two_bytes_of_length() -> None:
    spec = ModelSpec("m", {"x": TensorModality((1,))}, tuple(f"action {i}" for i in range(5000)), 40)
    _, found = read(chosen(Contract(a_model(spec))).response(an_answer(a_model(spec)), "r" * 300))
    assert found["probabilities"].shape == (2, 5000)
    np.testing.assert_array_equal(found["embedding"][1], np.ones(40))


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["radar"], ['outputs["radar"]', "there are ['probabilities'"]),
        (["action", "action"], ['outputs["action"]: is there twice']),
    ],
)
def test_what_is_wrong_with_outputs_is_named(names: list[str], named: list[str]) -> None:
    with pytest.raises(InvalidInput) as refused:
        chosen(TINY, *names)
    assert all(part in str(refused.value) for part in named)


def test_parameters_of_outputs_that_would_change_them_are_refused() -> None:
    output = pb.ModelInferRequest.InferRequestedOutputTensor(name="probabilities")
    output.parameters["classification"].int64_param = 3
    with pytest.raises(InvalidInput, match="classes are not sorted here"):
        TINY.choice([output])


# --- streams ---------------------------------------------------------------------------------------------------------


def test_streamed_responses_and_errors_are_messages() -> None:
    response = chosen(TINY).response(an_answer(a_model(tiny_spec())), "r1")
    plain = pb.ModelStreamInferResponse.FromString(streamed(response, marked_final=False))
    assert plain.error_message == ""
    assert plain.infer_response == pb.ModelInferResponse.FromString(response)
    marked = pb.ModelStreamInferResponse.FromString(streamed(response, marked_final=True)).infer_response
    assert marked.parameters["triton_final_response"].bool_param
    assert marked.parameters["role"].string_param == "live"
    assert marked.raw_output_contents == plain.infer_response.raw_output_contents

    error = pb.ModelStreamInferResponse.FromString(streamed_error("no", "r2", marked_final=True))
    assert (error.error_message, error.infer_response.id) == ("no", "r2")
    assert error.infer_response.parameters["triton_final_response"].bool_param
