"""The stream of an open page of the console: by session, of the person's sites, and asked for anew each minute."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from django.contrib.auth.models import User
from django.test import Client

from sites_app.models import SiteScope
from smartgrid.console import live
from smartgrid.console.live import PATH
from smartgrid.events import Event, Kind, events_flush, events_publish
from tests.events.listening import Stream
from tests.factories import Story, story_make

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def story(transactional_db) -> Story:
    return story_make()


def cookie_of(user: User) -> str:
    client = Client()
    client.force_login(user)
    return f"sessionid={client.cookies['sessionid'].value}"


def somebody(*sites, is_staff: bool = True) -> User:
    user = User.objects.create_user(f"somebody{User.objects.count()}", is_staff=is_staff)
    SiteScope.objects.create(user=user).sites.set(sites)
    return user


@pytest.fixture
def watch() -> Iterator[Callable[[str, User | None], Stream]]:
    """Opens the stream of a page, as the browser of this person."""
    streams: list[Stream] = []

    def opened(url: str, user: User | None) -> Stream:
        headers = {} if user is None else {"Cookie": cookie_of(user)}
        streams.append(Stream(f"{url}{PATH}", headers).start())
        return streams[-1]

    yield opened
    for stream in streams:
        stream.close()


def happens(story: Story) -> None:
    events_publish(
        [Event(Kind.NODE, site.pk, {"site": site.site_tag}) for site in (story.site_a, story.site_b)]
    )
    assert events_flush(within_s=5)


def test_page_is_told_of_its_persons_sites_alone(address, story, watch):
    everything, only_a, nothing = (
        watch(address, somebody(*sites)) for sites in ((story.site_a, story.site_b), (story.site_a,), ())
    )
    happens(story)
    everything.hears(2)
    assert [data["site"] for data in only_a.hears(1)] == ["solarpanel_site_a"]
    assert nothing.heard() == []


@pytest.mark.parametrize("who", ["nobody", "no staff"])
def test_who_is_not_logged_in_to_the_console_is_told_nothing(address, story, watch, who):
    stream = watch(address, None if who == "nobody" else somebody(story.site_a, is_staff=False))
    # Web sends a browser to log in; the events' process has no such page.
    assert stream.status in {302, 403}
    assert not stream.events


def test_stream_ends_so_that_the_browser_asks_anew(served, story, watch, monkeypatch):
    monkeypatch.setattr(live, "ASKED_ANEW_AFTER_S", 0.5)
    stream = watch(served.url, somebody(story.site_a))
    happens(story)
    stream.hears(1)
    stream.ends()
