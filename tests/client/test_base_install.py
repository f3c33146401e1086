"""The base install is the client: grpcio and protobuf, nothing else. Checked where there is nothing else."""

from __future__ import annotations

import subprocess
import sys
import textwrap

_BLOCK_ALL_BUT_THE_BASE = """
import importlib.abc, sys

THIRD_PARTY = {"grpc", "google", "typing_extensions"}  # typing_extensions comes with grpcio

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in THIRD_PARTY or top == "plaudit":
            return None
        raise ModuleNotFoundError(f"{name} is not in the base install", name=name)

sys.meta_path.insert(0, Blocked())
"""


def _run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _BLOCK_ALL_BUT_THE_BASE + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_client_works_with_grpcio_and_protobuf_alone() -> None:
    done = _run("""
        from plaudit.client import AsyncClient, Client, ClientError, feedback, image
        from plaudit.client.calls import predict
        call = predict({"image": image(b"x"), "text": "hi"})
        assert call.request.content["text"].text == "hi"
        assert feedback.thumbs_up("id").feedback_id
        Client("127.0.0.1:1").close()
        assert "numpy" not in sys.modules and "pydantic" not in sys.modules
    """)
    assert done.returncode == 0, done.stderr


def test_the_shell_says_which_extra_is_missing() -> None:
    done = _run("""
        from plaudit.cli import main
        sys.argv = ["plaudit", "versions"]
        main()
    """)
    assert done.returncode == 2
    assert "pip install 'plaudit[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_block_blocks() -> None:
    assert "numpy is not in the base install" in _run("import numpy").stderr
