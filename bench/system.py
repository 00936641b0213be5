"""The system under test: a demo of its own, and a client that keeps its connection."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.record import ROOT

READY_S = 120.0
SITE_B = "85a2dfb4-cca4-47fb-89bd-87b4d7014751"
# On a profile without a pause between commands: what is timed is ours.
GAPLESS = "GENERIC_PV_01"


@dataclass(frozen=True, kw_only=True)
class System:
    """A running demo: what demo.json says, and the file with the moments of its devices' writes."""

    demo: dict[str, Any]
    var: Path
    writes: Path


@contextmanager
def running_system(var: Path) -> Iterator[System]:
    """Start a demo on free ports in `var`, and end it."""
    writes = var / "writes"
    environment = {
        **os.environ,
        "SGM_PORT": "0",
        "SGM_VAR": str(var),
        "SGM_TIME_LIMIT": "3600",
        # What is measured is a path through the system, not the polling of sixty simulated devices beside it.
        "SGM_DEMO_FLEET": "guide",
        "SGM_DEMO_RECORD_WRITES": str(writes),
    }
    with (var / "demo.out").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "smartgrid.demo"], cwd=ROOT, env=environment, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + READY_S
        while not (var / "demo.json").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the demo did not start: {(var / 'demo.out').read_text()[-2000:]}")
            time.sleep(0.1)
        yield System(demo=json.loads((var / "demo.json").read_text()), var=var, writes=writes)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


class Client:
    """One API client on one kept connection."""

    def __init__(self, demo: dict[str, Any], *, token: str | None = None) -> None:
        self._demo = demo
        self._address = urlsplit(demo["api_url"]).netloc
        self._connection = self._connect()
        self.token = token or self._token()
        self._headers = {
            "Authorization": f"Bearer {self.token}",
            "X-Management-Token": demo["root_token"],
            "Content-Type": "application/json",
        }

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self._address, timeout=30)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _token(self) -> str:
        body = {
            "audience": self._demo["audience"],
            "grant_type": "client_credentials",
            "client_id": self._demo["client_id"],
            "client_secret": self._demo["client_secret"],
        }
        path = urlsplit(self._demo["token_url"]).path
        self._connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return str(json.loads(self._connection.getresponse().read())["access_token"])

    def curtail(
        self, value: float, *, site: str = SITE_B, tags: tuple[str, ...] = (GAPLESS,)
    ) -> dict[str, Any]:
        """PUT curtail-category; the decoded answer."""
        body = json.dumps({"value": value, "category": "inverter", "device_tags": tags})
        self._connection.request("PUT", f"/v1/sites/{site}/curtail-category", body, self._headers)
        response = self._connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        if response.status != http.client.OK:
            raise SystemExit(f"PUT answered {response.status}: {answer}")
        return answer

    def close(self) -> None:
        self._connection.close()
