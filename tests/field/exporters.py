"""Graphs as exporters and converters write them; their libraries are those of the dependency group ``field``.

Every library is imported where it is used: the fast tests do without.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from field.graphs import LINEAR, Case, X, saved

PROBABILITIES = "is taken for probabilities, as its rows sum to 1"


def training_data() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """120 rows of 4 features, and 3 classes."""
    x = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0.5)


def written(folder: Path, model: Any) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


# --- scikit-learn ----------------------------------------------------------------------------------------------------


def sklearn_model(make: Callable[[], Any], *, dtype: str = "float32", binary: bool = False, **options: Any) -> Any:
    def write(folder: Path) -> Path:
        from skl2onnx import to_onnx

        x, y = training_data()
        y = np.minimum(y, 1) if binary else y
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = make().fit(x.astype(dtype), y)
            return written(folder, to_onnx(fitted, x[:1].astype(dtype), **options))

    return write


def logistic_regression() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression()


def scaled_svm() -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    return make_pipeline(StandardScaler(), SVC(kernel="linear"))


def forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(8, random_state=0)


def boosting() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_iter=5)


def network() -> Any:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier((8,), random_state=0, max_iter=50)


def columns_of_a_frame(folder: Path) -> Path:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = training_data()
    columns = ColumnTransformer([("all", StandardScaler(), [0, 1])])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = make_pipeline(columns, LogisticRegression()).fit(x[:, :2], y)
        types = [("age", FloatTensorType([None, 1])), ("fare", FloatTensorType([None, 1]))]
        return written(folder, convert_sklearn(fitted, initial_types=types))


def text_pipeline(folder: Path) -> Path:
    from skl2onnx import to_onnx
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = np.array([["good day"], ["bad night"], ["good night"]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts[:, 0], [0, 1, 0])
        return written(folder, to_onnx(fitted, texts))


# --- LightGBM and XGBoost --------------------------------------------------------------------------------------------


def lightgbm_model(*, zipmap: bool) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        import lightgbm
        from onnxmltools import convert_lightgbm
        from onnxmltools.convert.common.data_types import FloatTensorType

        x, y = training_data()
        x = x.copy()
        x[::7, 0] = np.nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = lightgbm.LGBMClassifier(n_estimators=4, verbose=-1, num_threads=1).fit(x, y)
            types = [("x", FloatTensorType([None, 4]))]
            return written(folder, convert_lightgbm(fitted, initial_types=types, zipmap=zipmap))

    return write


def xgboost_model(folder: Path) -> Path:
    import xgboost
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    x, y = training_data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = xgboost.XGBClassifier(n_estimators=4, n_jobs=1).fit(x, y)
        return written(folder, convert_xgboost(fitted, initial_types=[("x", FloatTensorType([None, 4]))]))


# --- torch -----------------------------------------------------------------------------------------------------------


def torch_network() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()


def by_torch(*, dynamo: bool, fixed: bool = False, external: bool = False) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        import torch

        path = folder / "m.onnx"
        names: dict[str, Any] = {"input_names": ["x"], "output_names": ["logits"]}
        if not fixed and dynamo:
            names["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
        elif not fixed:
            names["dynamic_axes"] = {"x": {0: "batch"}, "logits": {0: "batch"}}
        rows = 1 if fixed else 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch_network()
            if external:
                names["external_data"] = True
            torch.onnx.export(model, (torch.zeros(rows, 4),), str(path), dynamo=dynamo, verbose=False, **names)
        return path

    return write


def recurrent(folder: Path) -> Path:
    """Token ids of any length through an embedding and a GRU."""
    import torch

    class Reader(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.words = torch.nn.Embedding(50, 8)
            self.gru = torch.nn.GRU(8, 8, batch_first=True)
            self.last = torch.nn.Linear(8, 3)

        def forward(self, tokens: Any) -> Any:
            read, _ = self.gru(self.words(tokens))
            return self.last(read[:, -1])

    path = folder / "m.onnx"
    axes = {"tokens": {0: "batch", 1: "length"}, "logits": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Reader().eval(),
            (torch.zeros(2, 5, dtype=torch.int64),),
            str(path),
            dynamo=False,
            input_names=["tokens"],
            output_names=["logits"],
            dynamic_axes=axes,
        )
    return path


# --- quantized, and of half precision --------------------------------------------------------------------------------


def quantized(kind: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

        class Rows(CalibrationDataReader):  # type: ignore[misc]  # its base is untyped
            def __init__(self) -> None:
                self._rows = iter([{"x": training_data()[0]}])

            def get_next(self) -> Any:
                return next(self._rows, None)

        by_torch(dynamo=False)(folder)
        source, target = folder / "m.onnx", folder / "q.onnx"
        if kind == "dynamic":
            quantize_dynamic(source, target)
        else:
            quantize_static(source, target, Rows(), quant_format=QuantFormat.QDQ)
        return target

    return write


def half_precision(*, keep_io: bool) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        from onnxconverter_common import float16

        model = onnx.load(by_torch(dynamo=False)(folder))
        return written(folder, float16.convert_float_to_float16(model, keep_io_types=keep_io))

    return write


def _sklearn(name: str, make: Any, *, probabilities: bool = True, **fields: Any) -> Case:
    notes = [f"output '{fields.get('scores')}' {PROBABILITIES}"] if probabilities else []
    return Case(name=name, make=make, notes=notes, **{"rows": {"X": X}, **fields})


CASES = [
    _sklearn("sk-logistic", sklearn_model(logistic_regression), scores="output_probability"),
    _sklearn("sk-logistic-binary", sklearn_model(logistic_regression, binary=True), scores="output_probability"),
    _sklearn(
        "sk-logistic-plain",
        sklearn_model(logistic_regression, options={"zipmap": False}),
        scores="probabilities",
    ),
    _sklearn(
        "sk-logistic-double",
        sklearn_model(logistic_regression, dtype="float64", options={"zipmap": False}),
        rows={"X": X.astype(np.float64)},
        scores="probabilities",
        address="https://github.com/onnx/sklearn-onnx/issues/785",
    ),
    _sklearn("sk-svm", sklearn_model(scaled_svm), probabilities=False, scores="output_probability"),
    _sklearn("sk-forest", sklearn_model(forest), scores="output_probability"),
    _sklearn(
        "sk-boosting",
        sklearn_model(boosting),
        rows={"X": np.array([[np.nan, 1, 0, 0], [0.5, np.nan, 0, 0]], np.float32)},
        scores="output_probability",
        address="https://github.com/onnx/sklearn-onnx/issues/1253",
    ),
    _sklearn("sk-network", sklearn_model(network), scores="output_probability"),
    _sklearn(
        "sk-columns",
        columns_of_a_frame,
        rows={"age": X[:, :1], "fare": X[:, 1:2]},
        scores="output_probability",
        address="https://github.com/onnx/sklearn-onnx/issues/620",
    ),
    _sklearn(
        "lightgbm",
        lightgbm_model(zipmap=False),
        rows={"x": np.array([[np.nan, 1, 0, 0], [0.5, np.nan, 0, 0]], np.float32)},
        scores="probabilities",
        address="https://github.com/onnx/onnxmltools/issues/150",
    ),
    _sklearn("lightgbm-zipmap", lightgbm_model(zipmap=True), rows={"x": X}, scores="probabilities"),
    _sklearn("xgboost", xgboost_model, rows={"x": X}, scores="probabilities"),
    Case(name="torch-script", make=by_torch(dynamo=False)),
    Case(name="torch-dynamo", make=by_torch(dynamo=True)),
    Case(
        name="torch-dynamo-data",
        make=by_torch(dynamo=True, external=True),
        address="https://github.com/huggingface/sentence-transformers/pull/3913",
    ),
    Case(
        name="torch-fixed",
        make=by_torch(dynamo=True, fixed=True),
        address="https://github.com/triton-inference-server/server/issues/4445",
        notes=["rows are served one by one, as its batch is fixed to 1"],
    ),
    Case(name="torch-recurrent", make=recurrent, rows={"tokens": np.array([[1, 2, 3, 4], [49, 0, 7, 7]])}),
    Case(
        name="quantized-static",
        make=quantized("static"),
        address="https://github.com/microsoft/onnxruntime/issues/10111",
    ),
    Case(
        name="quantized-dynamic",
        make=quantized("dynamic"),
        address="https://github.com/Anush008/fastembed-rs/issues/107",
        notes=["rows are served one by one, as a row's scores depend on the other rows"],
    ),
    Case(name="half-inside", make=half_precision(keep_io=True)),
    Case(
        name="half",
        make=half_precision(keep_io=False),
        rows={"x": X.astype(np.float16)},
        address="https://github.com/microsoft/onnxruntime/issues/3890",
    ),
    *(
        Case(name=f"opset-{opset}", make=lambda folder, opset=opset: saved(folder, [LINEAR], opset=opset))  # type: ignore[misc]
        for opset in range(7, onnx.defs.onnx_opset_version() - 1)
    ),
]

REFUSED = [
    Case(
        name="sk-text",
        make=text_pipeline,
        address="https://github.com/onnx/sklearn-onnx/issues/125",
        refused="input 'X': holds strings; only numbers and truth values are served",
    ),
]
