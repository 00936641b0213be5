"""Tags instead of ids."""

from __future__ import annotations

from collections.abc import Iterable

from sgm.client import Client
from sgm.errors import NotFound

# More sites than these are listed in one go rather than asked for one by one.
FEW = 20


def site_tags(client: Client, site_ids: Iterable[str]) -> dict[str, str]:
    """The tags of these sites by id; one that is no longer there is left out."""
    wanted = set(site_ids)
    if len(wanted) > FEW:
        return {site.id: site.site_tag for site in client.sites()}
    found = {}
    for site_id in wanted:
        try:
            found[site_id] = client.site(site_id).site_tag
        except NotFound:
            continue
    return found
