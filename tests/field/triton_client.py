"""Asks a server through tritonclient, in a process of its own: its messages have the names of ours.

    python triton_client.py ADDRESS QUESTIONS ANSWERS

Both are a file of tensors and one of JSON beside it: a list of ``[model, {input: tensor's name}]``, and a list of
``{output: tensor's name}``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from safetensors.numpy import load_file, save_file
from tritonclient.utils import np_to_triton_dtype


def main(address: str, questions: str, answers: str) -> None:
    given = load_file(questions)
    client = triton.InferenceServerClient(address)
    made: dict[str, np.ndarray] = {}
    listed = []
    for model, names in json.loads(Path(f"{questions}.json").read_text()):
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
                made[key] = np.array(result.as_numpy(output.name))
                outputs[output.name] = key
        listed.append(outputs)
    save_file(made, answers)
    Path(f"{answers}.json").write_text(json.dumps(listed))
    client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
