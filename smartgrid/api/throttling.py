"""Each client and each management token has so many requests; control has its own, apart from the rest."""

from __future__ import annotations

import time
from enum import Enum
from typing import TYPE_CHECKING

from django.conf import settings
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from smartgrid.api.principal import principal_of
from smartgrid.errors import Throttled
from smartgrid.throttles import Bucket, admit

if TYPE_CHECKING:
    # It imports this module by its settings.
    from rest_framework.views import APIView


class Lane(Enum):
    """Requests that are counted together. A view says in its `throttle_lane` which it is in; else REST.

    A poller that is throttled must not hold up a curtailment, nor the other way round.
    """

    REST = "rest"
    CONTROL = "control"


class ByClientAndToken(BaseThrottle):
    """429 `throttled` where the client or the token asks too often; failed credentials never get this far."""

    def allow_request(self, request: Request, view: APIView) -> bool:
        principal = principal_of(request)
        lane = getattr(view, "throttle_lane", Lane.REST).value
        buckets = []
        if settings.SGM_THROTTLE_CLIENT is not None:
            buckets.append(Bucket(f"{lane}:client:{principal.client_id}", settings.SGM_THROTTLE_CLIENT))
        if settings.SGM_THROTTLE_TOKEN is not None:
            # All root tokens are one: several are valid only while one takes another's place.
            buckets.append(
                Bucket(f"{lane}:token:{principal.token_id or 'root'}", settings.SGM_THROTTLE_TOKEN)
            )
        wait_s = admit(buckets, now=time.monotonic())
        if wait_s > 0:
            raise Throttled("Too many requests by this client or token.", retry_after_s=wait_s)
        return True
