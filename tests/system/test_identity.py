"""No node can speak for another: mutual TLS on a real broker, with the configuration of production."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from edge.wire.session import (
    Broker,
    LinkDown,
    Session,
    Tls,
    Will,
    broker_from_url,
    open_session,
    try_certificate,
)
from edge.wire.topics import ALL_PRESENCE, NodeTopics, responses_to
from sites_app import authority, identity
from sites_app.models import NodeCertificate
from sites_app.revocation import revocations_enforce
from tests.factories import node_make
from tests.mqtt import Client
from tests.nodes import Key
from tests.servers import TlsBroker

pytestmark = [pytest.mark.services]
TENANT = "tenant-123"
WITHIN_S = 10.0
