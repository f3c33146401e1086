"""Writes the head as an ONNX graph: embedding and base logits → action scores.

The graph is :func:`plaudit_models.bandit.improvement.head_scores` in float32, node by node. Knows nothing about torch
or about where rewards come from. Outside training this is the only module that imports onnx.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from plaudit_models.bandit.features import (
    MIN_NORM,
    UNSURENESS_POWER,
    FeatureSpace,
    Floats,
    action_codes,
    directions,
)
from plaudit_models.bandit.improvement import TINY, HeadSettings
from plaudit_models.bandit.posterior import (
    ActionsPosterior,
    FullVariance,
    SharedVariance,
    own_precisions,
    posterior,
    precisions,
    prior_scale,
)
from plaudit_models.bandit.reward_model import RewardState
from plaudit_models.spec import BASE_LOGITS, EMBEDDING, SCORES

OPSET: Final = 18
IR_VERSION: Final = 10
"""Newest version that every supported onnxruntime reads."""


def write_initial_head(path: Path, embedding_size: int, n_actions: int) -> None:
    """Write the head before any feedback: ``scores`` = ``base_logits``, the policy that pre-training gave."""
    graph = _Graph()
    graph.add("Identity", BASE_LOGITS, output=SCORES)
    path.write_bytes(graph.model(embedding_size, n_actions).SerializeToString())


def build_head(settings: HeadSettings, state: RewardState) -> onnx.ModelProto:
    """Head that follows ``state``; see :mod:`plaudit_models.bandit.improvement` for its maths and symbols."""
    space = state.space
    belief = posterior(state, settings.prior)
    graph = _Graph()
    log_base = graph.add("LogSoftmax", BASE_LOGITS, axis=1)
    base = graph.add("Exp", log_base)
    one, zero = graph.constant(1.0), graph.constant(0.0)
    entropy = graph.add("Neg", graph.sum_rows(graph.add("Mul", base, log_base)))
    unsure = graph.add("Mul", entropy, graph.constant(1.0 / np.log(space.n_actions)))
    unsure = graph.add("Clip", unsure, zero, one)
    x = _add_regressors(graph, space, base, unsure)
    q, variance, prior_variance = _add_prediction(graph, belief, base, x)

    unknown = graph.sum_rows(graph.add("Mul", base, graph.add("Div", variance, prior_variance)))
    known = graph.add("Clip", graph.add("Sub", one, unknown), zero, one)
    loosened = graph.add("Mul", graph.add("Mul", known, known), graph.constant(settings.reference_mix))
    anchored = graph.add("Add", log_base, graph.add("Log", graph.add("Sub", one, loosened)))
    uniform = graph.add("Mul", loosened, graph.constant(1.0 / space.n_actions))
    uniform = graph.add("Log", graph.add("Add", uniform, graph.constant(TINY)))
    # log(eˣ + eʸ) = max(x, y) + log(1 + e^−|x − y|), which cannot overflow
    apart = graph.add("Neg", graph.add("Abs", graph.add("Sub", anchored, uniform)))
    reference = graph.add("Add", graph.add("Max", anchored, uniform), graph.add("Softplus", apart))

    believed = graph.add("Clip", q, graph.constant(settings.reward_low), one)
    spread = graph.add("Sqrt", variance)
    sure = graph.add("Sub", one, unsure)
    doubt = graph.add("Mul", spread, graph.add("Mul", sure, graph.constant(settings.benefit_of_doubt)))
    at_best = graph.add("Clip", graph.add("Add", believed, doubt), zero, one)
    content = graph.sum_rows(graph.add("Mul", base, at_best))
    best = graph.add("ReduceMax", believed, graph.constant([1]), keepdims=1)
    room = graph.add("Sub", one, graph.add("Max", content, best))
    optimism = graph.add("Mul", spread, graph.constant(settings.optimism))
    optimism = graph.add("Mul", optimism, graph.add("Mul", room, room))
    optimistic = graph.add("Add", believed, optimism)
    urge = graph.add("Mul", graph.add("Mul", known, optimistic), graph.constant(1.0 / settings.temperature))
    if settings.caution:  # most heads are without, and answer without it
        worth = graph.sum_rows(graph.add("Mul", base, believed))
        worth = graph.add("Clip", graph.add("Div", worth, graph.sum_rows(graph.add("Mul", base, base))), zero, one)
        half_sure = graph.add("Mul", graph.add("Mul", sure, unsure), graph.constant(4.0 * settings.caution))
        dearer = graph.add("Add", one, graph.add("Mul", half_sure, graph.add("Mul", worth, worth)))
        urge = graph.add("Div", urge, dearer)
    graph.add("Add", reference, urge, output=SCORES)
    return graph.model(space.embedding_size, space.n_actions)


def _add_regressors(graph: _Graph, space: FeatureSpace, base: str, unsure: str) -> str:
    """x, ``[b, g]``, as :func:`plaudit_models.bandit.features.features` and ``regressors`` make it."""
    blocks = [graph.add("MatMul", base, graph.codes(space)) if space.coded else base]
    if space.embedding_features:
        norm = graph.add("ReduceL2", EMBEDDING, graph.constant([1]), keepdims=1)
        norm = graph.add("Max", norm, graph.constant(MIN_NORM))
        unit = graph.add("Div", EMBEDDING, norm)
        turned = graph.add("MatMul", unit, graph.constant(directions(space.embedding_size, space.embedding_features)))
        faded = graph.add("Pow", unsure, graph.constant(UNSURENESS_POWER))
        scale = graph.add("Mul", faded, graph.constant(np.sqrt(2.0 / space.embedding_features)))
        blocks += [graph.add("Mul", graph.add(wave, turned), scale) for wave in ("Cos", "Sin")]
    total = graph.sum_rows(base)
    blocks.append(graph.add("Div", total, total))  # a column of ones as long as the batch
    return graph.add("Concat", *blocks, axis=1)


def _add_prediction(graph: _Graph, belief: ActionsPosterior, base: str, x: str) -> tuple[str, str, str]:
    """q, σ² and σ₀², each ``[b, a]``."""
    q = graph.add("Add", base, graph.add("MatMul", x, graph.constant(belief.mean.T)))
    if isinstance(belief.variance, FullVariance):
        projected = graph.add("MatMul", x, _add_factor(graph, belief.variance.factor))  # [a, b, g]
        squared = graph.add("ReduceSumSquare", projected, graph.constant([2]), keepdims=0)
        variance = graph.add("Transpose", squared, perm=[1, 0])
    else:
        variance = _add_shared_variance(graph, belief.variance, x)
    return q, variance, _add_prior_variance(graph, belief, x)


def _add_prior_variance(graph: _Graph, belief: ActionsPosterior, x: str) -> str:
    """σ₀², ``[b, a]``."""
    space, prior = belief.space, belief.prior
    squares = graph.add("Mul", x, x)
    if not space.coded:
        return graph.add("MatMul", squares, graph.constant((1.0 / own_precisions(space, prior)).T))
    total = graph.add("MatMul", squares, graph.constant((1.0 / precisions(space, prior))[:, None]))
    own = _along_codes(graph, space, x)
    less = graph.add("Mul", graph.add("Mul", own, own), graph.constant(prior_scale(prior)))
    return graph.add("Sub", total, less)


def _add_shared_variance(graph: _Graph, belief: SharedVariance, x: str) -> str:
    """σ² as :meth:`plaudit_models.bandit.posterior.SharedVariance.of` makes it, ``[b, a]``.

    In float64, because it is a small difference of large squares; the constants are stored in float32.
    """
    x = graph.double(x)
    whitening = graph.double(graph.constant(belief.whitening))
    white = graph.add("MatMul", x, graph.add("Transpose", whitening, perm=[1, 0]))
    own = _along_codes(graph, belief.space, graph.add("MatMul", white, whitening), double=True)
    total = graph.add("ReduceSumSquare", white, graph.constant([1]), keepdims=1)
    total = graph.add("Mul", total, graph.double(graph.constant(belief.counts)))
    less = graph.add("Mul", graph.add("Mul", own, own), graph.double(graph.constant(belief.own_scale)))
    variance = graph.add("Sub", total, less)
    if len(belief.rows):
        rows, signs = graph.double(graph.constant(belief.rows)), graph.double(graph.constant(belief.signs[:, None]))
        projected = graph.add("MatMul", rows, graph.add("Transpose", x, perm=[1, 0]))
        squares = graph.add("Mul", graph.add("Mul", projected, projected), signs)
        of_actions = graph.add("Transpose", variance, perm=[1, 0])
        places = graph.constant([[k] for k in belief.actions.tolist()])
        summed = graph.add("ScatterND", of_actions, places, squares, reduction="add")
        variance = graph.add("Transpose", summed, perm=[1, 0])
    return graph.add("Max", graph.add("Cast", variance, to=TensorProto.FLOAT), graph.constant(0.0))


def _along_codes(graph: _Graph, space: FeatureSpace, values: str, *, double: bool = False) -> str:
    """As :func:`plaudit_models.bandit.features.along_codes`."""
    first = graph.constant([space.n_base_regressors])
    own = graph.add("Slice", values, graph.constant([0]), first, graph.constant([1]))
    if not space.coded:
        return own
    codes = graph.add("Transpose", graph.codes(space), perm=[1, 0])
    return graph.add("MatMul", own, graph.double(codes) if double else codes)


def _add_factor(graph: _Graph, factor: Floats) -> str:
    """Transposes of lower triangles ``[a, f, f]``, stored two in one rectangle: they are most of a head.

    What unpacks them does not depend on the input, so that a runtime does it once, when it loads the graph.
    """
    a, f = factor.shape[:2]
    half = (a + 1) // 2
    second = np.zeros((half, f, f))
    second[: a - half] = factor[half:].transpose(0, 2, 1)
    packed = np.zeros((half, f, f + 1))
    packed[:, :, 1:] = np.triu(second)
    packed[:, :, :f] += np.tril(factor[:half])
    stored = graph.constant(packed)
    columns = graph.constant([2])
    left = graph.add("Slice", stored, graph.constant([0]), graph.constant([f]), columns)
    first = graph.add("Transpose", graph.add("Trilu", left, upper=0), perm=[0, 2, 1])
    right = graph.add("Slice", stored, graph.constant([1]), graph.constant([f + 1]), columns)
    both = graph.add("Concat", first, graph.add("Trilu", right, upper=1), axis=0)
    return graph.add("Slice", both, graph.constant([0]), graph.constant([a]), graph.constant([0]))


class _Graph:
    """Nodes and constants under names that count up, so that building reads like the formula."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._codes = ""

    def add(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"n{len(self._nodes)}_{op.lower()}"
        self._nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def codes(self, space: FeatureSpace) -> str:
        """Codes of the actions, ``[a, 256]``; only their signs are stored, and a runtime reads them once."""
        if not self._codes:
            codes = action_codes(space.n_actions)
            self._constants.append(numpy_helper.from_array(np.sign(codes).astype(np.int8), "codes"))
            signs = self.add("Cast", "codes", to=TensorProto.FLOAT)
            self._codes = self.add("Mul", signs, self.constant(float(np.abs(codes[0, 0]))))
        return self._codes

    def constant(self, value: float | list[int] | list[list[int]] | Floats) -> str:
        name = f"c{len(self._constants)}"
        dtype = np.int64 if isinstance(value, list) else np.float32
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype=dtype), name))
        return name

    def double(self, values: str) -> str:
        return self.add("Cast", values, to=TensorProto.DOUBLE)

    def sum_rows(self, values: str) -> str:
        return self.add("ReduceSum", values, self.constant([1]), keepdims=1)

    def model(self, embedding_size: int, n_actions: int) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes,
            "head",
            inputs=[
                helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["b", embedding_size]),
                helper.make_tensor_value_info(BASE_LOGITS, TensorProto.FLOAT, ["b", n_actions]),
            ],
            outputs=[helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["b", n_actions])],
            initializer=self._constants,
        )
        model = helper.make_model(
            graph, producer_name="plaudit", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        onnx.checker.check_model(model, full_check=True)
        return model
