"""Checks of the doctor on ports: whether the services can open them as they will, or have."""

from __future__ import annotations

import ipaddress
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from plaudit.cli.doctor.findings import Finding, State
from plaudit.cli.processes import ports
from plaudit.client import Client, ClientError
from plaudit.core.host.addresses import bare, join, reachable
from plaudit.core.settings import Settings

_PROBE_TIMEOUT_S: Final = 2.0


def examine_ports(settings: Settings) -> Iterator[Finding]:
    """Findings on each port."""
    serving, learner, console = settings.serving, settings.learner, settings.console
    wanted = [
        ("serving.port", serving.host, serving.port, _serves_predictions),
        ("serving.metrics_port", serving.metrics_address, serving.metrics_port, _shows_our_metrics),
        ("learner.metrics_port", learner.host, learner.metrics_port, _shows_our_metrics),
    ]
    if console.port is not None:
        wanted.append(("console.port", console.host, console.port, _shows_our_page))
    uses = Counter(port for _, _, port, _ in wanted if port)
    for setting, host, port, is_ours in wanted:
        if uses[port] > 1:
            others = [name for name, _, other, _ in wanted if other == port and name != setting]
            problem = f"{port} is also {' and '.join(others)}"
            yield Finding(setting, State.ERROR, problem, f"set {setting} to another")
        else:
            yield _port(setting, host, port, is_ours)


def _port(setting: str, host: str, port: int, is_ours: Callable[[str], bool]) -> Finding:
    problem = ports.problem(host, port)
    if not problem:
        return Finding(setting, State.OK, f"{port} is free" if port else "0: a free one is picked")
    if port and is_ours(reachable(host, port)):
        return Finding(setting, State.OK, f"{port}: Plaudit is running there")
    fix = f"stop what uses it, or set {setting} to another"
    return Finding(setting, State.ERROR, f"{join(host, port)} cannot be used ({problem})", fix)


def _serves_predictions(where: str) -> bool:
    with Client(where, timeout_s=_PROBE_TIMEOUT_S) as client:
        try:
            client.versions()
        except ClientError:
            return False
    return True


def _shows_our_metrics(where: str) -> bool:
    return _holds(f"http://{where}/metrics", b"plaudit_")


def _shows_our_page(where: str) -> bool:
    return _holds(f"http://{where}/", b"<title>Plaudit</title>")


def _holds(url: str, text: bytes) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=_PROBE_TIMEOUT_S) as answer:
            return text in answer.read()
    except (OSError, ValueError):
        return False


def examine_admin(settings: Settings) -> Iterator[Finding]:
    """Finding on who may promote and roll back."""
    if settings.serving.admin_token is not None:
        yield Finding("admin token", State.OK, "set")
    elif _is_loopback(settings.serving.host):
        yield Finding("admin token", State.OK, "none, and only this machine reaches the port")
    else:
        problem = "none: any client that reaches the port may promote and roll back"
        yield Finding("admin token", State.NOTE, problem, "set PLAUDIT_SERVING__ADMIN_TOKEN")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(bare(host)).is_loopback
    except ValueError:
        return host == "localhost"
