"""The head's graphs say what the numpy maths says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from plaudit_models.head import write_initial_head


def test_initial_head_passes_base_logits_through(tmp_path: Path) -> None:
    write_initial_head(tmp_path / "head.onnx", embedding_size=4, n_actions=3)
    session = ort.InferenceSession(tmp_path / "head.onnx")
    base_logits = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]], dtype=np.float32)
    (scores,) = session.run(["scores"], {"embedding": np.zeros((2, 4), dtype=np.float32), "base_logits": base_logits})
    assert {i.name for i in session.get_inputs()} == {"embedding", "base_logits"}
    np.testing.assert_array_equal(scores, base_logits)
