"""One signed request to a webhook: bounded in time, to the address that was judged, never redirected."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import socket
import ssl
import threading
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

from django.conf import settings

SIGNATURE_HEADER = "X-SGM-Signature"
# All of it, from the connection to the answer's head.
TIMEOUT_S = 5.0
OK, REDIRECTS = range(200, 300), range(300, 400)


class WebhookFailed(Exception):  # noqa: N818 - states the fault
    """It was not taken; the sentence says why, and holds nothing that the receiver wrote."""


class _Pinned(HTTPConnection):
    """To one address of a host, so that what was judged is what is connected to."""

    def __init__(self, *, host: str, port: int, address: str, is_tls: bool) -> None:
        super().__init__(host, port, timeout=TIMEOUT_S)
        self._address, self._is_tls = address, is_tls
        if is_tls:
            # What `Host` leaves out.
            self.default_port = 443

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), timeout=TIMEOUT_S)
        if self._is_tls:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)

    def cut(self) -> None:
        """End it whatever it waits for: a receiver that sends a byte a second keeps within each wait."""
        with contextlib.suppress(OSError, AttributeError):
            self.sock.shutdown(socket.SHUT_RDWR)


def signature(secret: str, *, body: bytes, at: int) -> str:
    """`t=SECONDS,v1=HEX`: HMAC-SHA256 with the secret over `SECONDS.BODY`."""
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def webhook_post(url: str, *, body: bytes, secret: str, at: int) -> None:
    """Post this once; `WebhookFailed` unless it is answered 2xx within five seconds."""
    parts = urlsplit(url)
    is_tls = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if is_tls else 80)
    if not is_tls and not settings.SGM_ALARM_WEBHOOKS_PRIVATE:
        raise WebhookFailed("http:// is not allowed (SGM_ALARM_WEBHOOKS_PRIVATE)")
    connection = _Pinned(host=host, port=port, address=_address(host, port), is_tls=is_tls)
    end = threading.Timer(TIMEOUT_S, connection.cut)
    end.daemon = True
    end.start()
    try:
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "smart-grid-manager",
            SIGNATURE_HEADER: signature(secret, body=body, at=at),
        }
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", target, body=body, headers=headers)
        status = connection.getresponse().status
    except TimeoutError as error:
        raise WebhookFailed(f"no answer within {TIMEOUT_S:g} s") from error
    except (OSError, HTTPException, ValueError) as error:
        raise WebhookFailed(f"not reached: {type(error).__name__}") from error
    finally:
        end.cancel()
        connection.close()
    if status not in OK:
        raise WebhookFailed(
            f"answered {status}" + (", redirects are not followed" if status in REDIRECTS else "")
        )


def _address(host: str, port: int) -> str:
    """An address of this host that may be connected to; all of them are judged."""
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise WebhookFailed("the host's name leads nowhere") from error
    if not settings.SGM_ALARM_WEBHOOKS_PRIVATE:
        private = [address for address in found if not _is_public(address)]
        if private:
            raise WebhookFailed("the host is at a private address (SGM_ALARM_WEBHOOKS_PRIVATE)")
    return found[0]


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_global and not (mapped or address).is_multicast
