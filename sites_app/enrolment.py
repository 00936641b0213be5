"""`/enroll`: how a node comes by its identity and renews it. Outside `/v1`, without its credentials.

Whoever asks shows a one-time token, or signs with the key of the certificate they have.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from django.conf import settings
from django.http import HttpResponse
from django.urls import URLPattern, path
from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.throttling import SimpleRateThrottle
from rest_framework.views import APIView

from edge.wire.enrolment import (
    AUTHORITY_PATH,
    CHALLENGE_PATH,
    CONFIRM_PATH,
    ENROL_PATH,
    RENEW_PATH,
    Challenge,
    ConfirmRequest,
    EnrolRequest,
    Issued,
    RenewRequest,
)
from edge.wire.messages import WIRE_VERSION, Message
from sites_app import identity
from smartgrid.errors import Invalid, NotFound

M = TypeVar("M", bound=Message)


class EnrolmentThrottle(SimpleRateThrottle):
    """Per address. Guessing a token is hopeless at any rate; this keeps our processor for others."""

    scope = "enrolment"
    rate = "120/min"

    def get_cache_key(self, request: Request, view: APIView) -> str:  # noqa: ARG002
        return f"enrolment-{_address(request)}"


def _address(request: Request) -> str:
    """Who asks. What a caller writes into X-Forwarded-For counts only as far as our own proxy wrote it."""
    forwarded = request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")[-1].strip()
    if settings.SGM_BEHIND_TLS_PROXY and forwarded:
        return str(forwarded)
    return str(request.META.get("REMOTE_ADDR", ""))


class _EnrolmentView(APIView):
    authentication_classes = ()
    permission_classes = ()
    throttle_classes = (EnrolmentThrottle,)


class Enrol(_EnrolmentView):
    def post(self, request: Request) -> Response:
        asked = _read(request, EnrolRequest)
        return _answer(identity.node_enrol(token=asked.token, csr=asked.csr, now=timezone.now()))


class MakeChallenge(_EnrolmentView):
    def post(self, request: Request) -> Response:  # noqa: ARG002
        return _answer(Challenge(challenge=identity.challenge_make(now=timezone.now())))


class Renew(_EnrolmentView):
    def post(self, request: Request) -> Response:
        asked = _read(request, RenewRequest)
        return _answer(
            identity.certificate_renew(
                challenge=asked.challenge,
                fingerprint=asked.fingerprint,
                csr=asked.csr,
                signature=asked.signature,
                now=timezone.now(),
            )
        )


class Confirm(_EnrolmentView):
    def post(self, request: Request) -> Response:
        asked = _read(request, ConfirmRequest)
        identity.certificate_confirm(
            challenge=asked.challenge,
            fingerprint=asked.fingerprint,
            signature=asked.signature,
            now=timezone.now(),
        )
        return Response({"v": WIRE_VERSION})


class ShowAuthority(_EnrolmentView):
    """The private authority of this server's certificate: a node knows it by the fingerprint in its token."""

    def get(self, request: Request) -> HttpResponse:  # noqa: ARG002
        pem = identity.https_authority()
        if not pem:
            raise NotFound("This server's certificate is not of a private authority.")
        return HttpResponse(pem, content_type="application/x-pem-file")


def _read(request: Request, kind: type[M]) -> M:
    try:
        asked = msgspec.convert(request.data, kind)
    except msgspec.ValidationError as error:
        raise Invalid(str(error)) from error
    if asked.v != WIRE_VERSION:
        raise Invalid.field("v", f"expected {WIRE_VERSION}")
    return asked


def _answer(message: Issued | Challenge) -> Response:
    return Response(msgspec.to_builtins(message), headers={"Cache-Control": "no-store"})


def enrolment_urlpatterns() -> list[URLPattern]:
    return [
        path(ENROL_PATH[1:], Enrol.as_view(), name="enrol"),
        path(AUTHORITY_PATH[1:], ShowAuthority.as_view(), name="enrolment-authority"),
        path(CHALLENGE_PATH[1:], MakeChallenge.as_view(), name="enrolment-challenge"),
        path(RENEW_PATH[1:], Renew.as_view(), name="enrolment-renew"),
        path(CONFIRM_PATH[1:], Confirm.as_view(), name="enrolment-confirm"),
    ]
