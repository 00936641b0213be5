"""Starts npm's `oidc-provider`: an identity provider that shares no line with ours."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from smartgrid.demo.state import free_port
from tests.npm import modules_of, node_and_npm
from tests.servers import until

HERE = Path(__file__).parent
# Resource indicators (RFC 8707): what a token is asked for. `provider.js` says what audience each has.
OURS = "https://grid.example/v1"
ANOTHER = "https://billing.example/"


@dataclass(kw_only=True)
class Provider:
    """A running provider with one client."""

    issuer: str
    kid: str
    client_id: str
    client_secret: str
    argv: list[str]
    directory: Path
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start it, on the same port as before and with new keys, unless it runs."""
        if self._process is None:
            with (self.directory / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    self.argv,
                    cwd=self.directory,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    start_new_session=True,
                )
            self.kid = self._said("ready")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def rotate(self) -> str:
        """Have it sign with a new key and publish that one too; the key's id."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write("rotate\n")
        self._process.stdin.flush()
        self.kid = self._said("rotated")
        return self.kid

    def _said(self, name: str) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the provider ended: {(self.directory / 'log').read_text()[-500:]}")
        return str(json.loads(line)[name])

    def token(self, *, resource: str = OURS, headers: Mapping[str, str] | None = None) -> str:
        """A token by the client credentials grant."""
        answer = self.token_request(resource=resource, headers=headers)
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    def token_request(
        self, *, resource: str | None = OURS, headers: Mapping[str, str] | None = None, **changes: Any
    ) -> httpx.Response:
        body = {"grant_type": "client_credentials", "resource": resource, **changes}
        return httpx.post(
            f"{self.issuer}/token",
            data={name: value for name, value in body.items() if value is not None},
            auth=(self.client_id, self.client_secret),
            headers=dict(headers or {}),
            timeout=10,
        )


@contextmanager
def provider_running(*people: str) -> Iterator[Provider]:
    """A provider of its own; `tests.npm.NodeMissingError` where it cannot be had.

    `people`: where those are sent who log in, and who log out.
    """
    node, npm = node_and_npm()
    modules = modules_of(HERE, npm)
    with tempfile.TemporaryDirectory(prefix="sgm-oidc-") as name:
        directory, port = Path(name), free_port()
        # node looks for packages beside the script, wherever it is started.
        shutil.copy(HERE / "provider.js", directory)
        shutil.copy(HERE / "package.json", directory)
        (directory / "node_modules").symlink_to(modules)
        client_id, client_secret = "robot", secrets.token_hex(24)
        provider = Provider(
            issuer=f"http://127.0.0.1:{port}",
            kid="",
            client_id=client_id,
            client_secret=client_secret,
            argv=[node, "provider.js", str(port), client_id, client_secret, *people],
            directory=directory,
        )
        try:
            provider.start()
            until(lambda: _answers(provider), what="the provider did not answer")
            yield provider
        finally:
            provider.stop()


def _answers(provider: Provider) -> bool:
    try:
        return httpx.get(f"{provider.issuer}/jwks", timeout=2).is_success
    except httpx.TransportError:
        return False
