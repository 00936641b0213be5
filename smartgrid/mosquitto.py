"""mosquitto's configuration: what the demo, the tests and production have in common, and mutual TLS."""

from __future__ import annotations

from pathlib import Path

from edge.wire.messages import MAXIMUM_PACKET

# What `manage.py ca init` and the revocations write into one directory for the broker.
SERVER, CRL = "server.pem", "nodes.crl"
NODES_CA, CENTRAL_CA = "nodes-ca.pem", "central-ca.pem"
NODES_ACL, CENTRAL_ACL = "nodes.acl", "central.acl"

NODES_PORT, CENTRAL_PORT = 8883, 8884


def broker_lines(*, data: Path) -> list[str]:
    """What every broker of ours is set to, whoever may come in."""
    return [
        # Else a request and its answer wait 44 ms each for a delayed acknowledgement.
        "set_tcp_nodelay true",
        f"max_packet_size {MAXIMUM_PACKET}",
        # The default of 20 would let the worker's commands to many nodes queue behind each other.
        "max_inflight_messages 1000",
        # A connecting inbox is handed two retained messages of every node at once, and a fleet has thousands.
        "max_queued_messages 100000",
        # What a reader that stands still may cost the broker before it notices, some 20 s later.
        "max_queued_bytes 268435456",
        "persistence true",
        f"persistence_location {data}/",
        "sys_interval 0",
        "log_dest stdout",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "log_timestamp_format %Y-%m-%dT%H:%M:%S",
    ]


def tls_config(
    *,
    files: Path,
    data: Path,
    nodes: tuple[str, int] = ("0.0.0.0", NODES_PORT),
    central: tuple[str, int] = ("127.0.0.1", CENTRAL_PORT),
) -> str:
    """mosquitto.conf for mutual TLS: one door for nodes, one for central, and no other.

    `files`: the directory of the authority's broker files; `data`: where the broker keeps retained messages.
    """
    lines = [
        "# Two doors, each with a list and an authority of its own: a certificate of the nodes' authority",
        "# can never be central, whatever name stands in it. Written by smartgrid/mosquitto.py.",
        "per_listener_settings true",
        *broker_lines(data=data),
        "",
        "# Nodes. The user is the certificate's CN, the node's id, and so is the client id: nobody can take",
        "# over the session of another, and a node has one session.",
        f"listener {nodes[1]} {nodes[0]}",
        *_door(files, authority=NODES_CA, acl=NODES_ACL),
        "use_username_as_clientid true",
        f"crlfile {files / CRL}",
        "",
        "# Central's workers and inboxes; on an address that only they reach.",
        f"listener {central[1]} {central[0]}",
        *_door(files, authority=CENTRAL_CA, acl=CENTRAL_ACL),
    ]
    return "\n".join(lines) + "\n"


def _door(files: Path, *, authority: str, acl: str) -> list[str]:
    return [
        f"cafile {files / authority}",
        f"certfile {files / SERVER}",
        f"keyfile {files / SERVER}",
        "tls_version tlsv1.2",
        "require_certificate true",
        "use_identity_as_username true",
        "allow_anonymous false",
        f"acl_file {files / acl}",
    ]
