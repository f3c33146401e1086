"""Asks a server through tritonclient, in a process of its own: its messages have the names of ours.

    python triton_client.py ADDRESS QUESTIONS.npz ANSWERS.npz

``plan`` in the questions is JSON, a list of ``[model, {input: array's name}]``; the answers hold JSON as well, a list
of ``{output: array's name}``.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype


def main(address: str, questions: str, answers: str) -> None:
    with np.load(questions) as arrays:
        given = dict(arrays)
    client = triton.InferenceServerClient(address)
    made: dict[str, np.ndarray] = {}
    listed = []
    for model, names in json.loads(str(given["plan"])):
        inputs = []
        for name, key in names.items():
            array = given[key]
            tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            inputs.append(tensor.set_data_from_numpy(array))
        result = client.infer(model, inputs)
        outputs = {}
        for output in result.get_response().outputs:
            if output.datatype != "BYTES":
                key = f"a{len(made)}"
                made[key] = result.as_numpy(output.name)
                outputs[output.name] = key
        listed.append(outputs)
    np.savez(answers, plan=json.dumps(listed), **made)
    client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
