"""Images, the Compose file and systemd's units, as far as they can be checked without running them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from support.programs import CANNOT_BE_HAD

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"
DOCKERFILES: Final = sorted(DEPLOY.glob("*.Dockerfile"))
LOADER: Final = ROOT / "tests/support/tools/compose_config"


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def test_hadolint_has_no_complaint() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "hadolint", *DOCKERFILES], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_images_have_one_numeric_user_and_tell_their_health(path: Path) -> None:
    text = path.read_text()
    assert "useradd --uid 10001 --gid plaudit" in text
    assert "\nUSER 10001:10001\n" in text
    assert "\nHEALTHCHECK " in text
    assert "/readyz" in text
    assert ",tracing,postgres]" in text  # what a deployment may inject, and what several learners need


def test_everything_has_a_bound_on_memory_and_starts_again() -> None:
    for name, service in compose()["services"].items():
        assert {"mem_limit", "restart"} <= service.keys(), name


def test_ports_are_open_on_this_host_alone() -> None:
    for name, service in compose()["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_grafana_is_given_the_dashboards_and_where_the_metrics_are() -> None:
    provisioning = DEPLOY / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert any(published.endswith(f":{port}") for published in compose()["services"][host]["ports"])
    (provider,) = yaml.safe_load((provisioning / "dashboards/plaudit.yaml").read_text())["providers"]
    mounted = dict(volume.split(":")[1::-1] for volume in compose()["services"]["grafana"]["volumes"])
    assert list((DEPLOY / mounted[provider["options"]["path"]]).glob("*.json"))


@pytest.mark.slow
def test_compose_reads_the_file(tmp_path: Path) -> None:
    """The loader that docker compose itself uses, built from its Go module."""
    if shutil.which("go") is None:
        pytest.skip(f"{CANNOT_BE_HAD}the loader of docker compose is built with Go")
    program = tmp_path / "compose-config"
    subprocess.run(["go", "build", "-o", program, "."], cwd=LOADER, check=True)
    done = subprocess.run([program, DEPLOY / "compose.yaml"], capture_output=True, text=True, check=False, env={})
    assert (done.returncode, done.stderr) == (0, "")
    services = yaml.safe_load(done.stdout)["services"]
    assert services.keys() == compose()["services"].keys()
    assert services["serve"]["environment"] == {
        "PLAUDIT_SERVING__TLS__CERTIFICATE": "/data/tls/server.crt",
        "PLAUDIT_SERVING__TLS__KEY": "/data/tls/server.key",
    }  # without them it does not start, as it listens to other machines
    assert services["serve"]["depends_on"]["kafka"] == {"condition": "service_healthy", "required": False}
    assert services["learn"]["volumes"][1]["bind"] == {"create_host_path": False}


def test_systemd_has_no_complaint_about_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip(f"{CANNOT_BE_HAD}there is no systemd")
    units = []
    for unit in sorted((DEPLOY / "systemd").glob("*.service")):
        installed = unit.read_text().replace("/opt/plaudit/bin/plaudit", f"{Path(sys.executable).parent}/plaudit")
        units.append(tmp_path / unit.name)
        units[-1].write_text(installed)
    assert len(units) == 2
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
