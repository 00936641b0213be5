"""The API's description says all there is, says it of every operation, and says what is true."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import referencing
import referencing.jsonschema
from django.contrib.staticfiles import finders
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from rest_framework.views import APIView

from smartgrid.api.description import TOLD
from smartgrid.api.docs import DescriptionApi, DocsApi, description
from smartgrid.api.examples import GUIDE
from smartgrid.api.schema import Operation
from smartgrid.api.views import UnknownPathApi
from tests.api.examples import EXAMPLES

METHODS = ("get", "post", "put", "patch", "delete", "head", "options", "trace")


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    schema: dict[str, Any] = SchemaGenerator().get_schema(request=None, public=True)
    return schema


def operations(described: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in described["paths"].items():
        for method, told in methods.items():
            yield path, method, told


def views(patterns: list[Any], prefix: str = "") -> Iterator[tuple[str, type[APIView]]]:
    for pattern in patterns:
        at = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from views(pattern.url_patterns, at)
        elif isinstance(pattern, URLPattern) and at.startswith("v1/"):
            view = getattr(pattern.callback, "cls", None)
            assert view is not None, f"{at} is no view of the API"
            yield at, view


def methods_of_views() -> Iterator[tuple[str, str, Operation | None]]:
    for at, view in views(get_resolver().url_patterns):
        if view.schema is None:
            continue
        for method in METHODS:
            handler = getattr(view, method, None)
            # (That every view answers OPTIONS is the framework's, and no operation.)
            if handler is not None and handler is not getattr(APIView, method, None):
                yield at, method, getattr(handler, TOLD, None)


def test_every_method_of_every_view_says_what_it_does():
    untold = [(at, method) for at, method, told in methods_of_views() if told is None]
    assert untold == []


def test_only_what_is_no_operation_is_left_out_of_the_description():
    left_out = {view for _, view in views(get_resolver().url_patterns) if view.schema is None}
    assert left_out == {DescriptionApi, DocsApi, UnknownPathApi}


def test_no_two_operations_share_a_name():
    names = Counter(told.name for _, _, told in methods_of_views() if told is not None)
    assert [name for name, count in names.items() if count > 1] == []


def test_description_is_drawn_without_a_warning(capsys):
    GENERATOR_STATS.reset()
    SchemaGenerator().get_schema(request=None, public=True)
    assert capsys.readouterr().err == ""


def test_description_is_openapi_3_1(described):
    assert described["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(described).validate()


def test_every_view_is_in_the_description(described):
    told = {told.name for _, _, told in methods_of_views() if told is not None}
    assert {each["operationId"] for _, _, each in operations(described)} == told


def test_every_operation_says_what_it_is_for(described):
    assert [
        told["operationId"]
        for _, _, told in operations(described)
        if not (told.get("summary") and told.get("description") and told.get("tags"))
    ] == []


def test_every_operation_stands_under_a_heading_that_is_explained(described):
    headings = {tag["name"] for tag in described["tags"]}
    assert {tag for _, _, told in operations(described) for tag in told["tags"]} <= headings


def test_every_operation_needs_both_credentials(described):
    assert {json.dumps(told["security"]) for _, _, told in operations(described)} == {
        '[{"bearer": [], "managementToken": []}]'
    }


def test_every_refusal_has_the_one_shape_and_an_example(described):
    refusals = described["components"]["responses"]
    for path, method, told in operations(described):
        for status, answer in told["responses"].items():
            if status.startswith("2"):
                continue
            name = answer["$ref"].rpartition("/")[2]
            shown = refusals[name]["content"]["application/json"]
            assert shown["schema"] == {"$ref": "#/components/schemas/Error"}, (path, method, status)
            assert shown["examples"]


def test_examples_are_the_guides_bodies_and_none_is_missing():
    shown = [(printed.request, printed.body, printed.answer) for each in GUIDE.values() for printed in each]
    told = [
        (
            f"{example.method} {example.path}",
            json.loads(example.body) if example.body else None,
            example.answer,
        )
        for example in EXAMPLES
        if example.status is not None
    ]
    assert sorted(map(json.dumps, shown)) == sorted(map(json.dumps, told))


def test_every_request_of_the_guide_stands_with_the_operation_it_is_for(described, settings):
    settings.SGM_ISSUER_KEY_FILE = "issuer.pem"
    by_name = {
        told["operationId"]: (path, method, told)
        for path, method, told in operations(json.loads(description().body))
    }
    for name, all_printed in GUIDE.items():
        path, method, told = by_name[name]
        for printed in all_printed:
            sent_method, _, sent_to = printed.request.partition(" ")
            assert sent_method.lower() == method
            assert re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), urlsplit(sent_to).path), name
            if printed.answer is not None:
                examples = told["responses"]["200"]["content"]["application/json"]["examples"]
                assert examples[printed.name]["value"] == printed.answer


def test_what_the_guide_prints_fits_what_is_described(described, settings):
    settings.SGM_ISSUER_KEY_FILE = "issuer.pem"
    whole = json.loads(description().body)
    registry = referencing.Registry().with_resource(
        "urn:api", referencing.Resource.from_contents(whole, referencing.jsonschema.DRAFT202012)
    )
    for path, method, told in operations(whole):
        places = {
            f"paths/{path.replace('/', '~1')}/{method}/requestBody": told.get("requestBody", {}),
            f"paths/{path.replace('/', '~1')}/{method}/responses/200": told["responses"].get("200", {}),
        }
        for at, place in places.items():
            shown = place.get("content", {}).get("application/json", {})
            judge = Draft202012Validator(
                {"$ref": f"urn:api#/{quote(at, safe='/~')}/content/application~1json/schema"},
                registry=registry,
            )
            for example in shown.get("examples", {}).values():
                judge.validate(example["value"])


def test_description_is_given_to_everybody_and_once_only(settings):
    client = Client()
    answer = client.get("/v1/openapi.json")
    assert answer.status_code == 200
    assert answer["Content-Type"] == "application/json"
    assert answer.json()["info"]["title"] == "Smart Grid Manager"
    again = client.get("/v1/openapi.json", headers={"If-None-Match": answer["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert description() is description()


def test_description_tells_of_the_built_in_issuer_only_where_there_is_one(settings):
    settings.SGM_ISSUER_KEY_FILE = ""
    without = json.loads(description().body)
    settings.SGM_ISSUER_KEY_FILE = "issuer.pem"
    with_issuer = json.loads(description().body)
    assert "/oauth/token" not in without["paths"]
    assert with_issuer["paths"]["/oauth/token"]["post"]["security"] == []
    assert set(with_issuer["components"]["securitySchemes"]) == {"bearer", "issuer", "managementToken"}
    OpenAPIV31SpecValidator(with_issuer).validate()


class Addresses(HTMLParser):
    """All that a page makes a browser fetch, and whether anything in it is script or style."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline: list[str] = []
        self._within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._within = tag
        for name, value in attrs:
            if name in {"src", "href", "data-description"}:
                self.found.append(value or "")
            if name == "style" or name.startswith("on"):
                self.inline.append(f"{tag} {name}")

    def handle_data(self, data: str) -> None:
        if self._within in {"script", "style"} and data.strip():
            self.inline.append(data)

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 - the parser's hook
        self._within = ""


@pytest.mark.django_db
def test_page_of_the_description_fetches_nothing_from_elsewhere(settings):
    settings.WHITENOISE_USE_FINDERS = True
    client = Client()
    page = client.get("/v1/docs")
    assert page.status_code == 200
    addresses = Addresses()
    addresses.feed(page.content.decode())
    assert addresses.inline == []
    assert len(addresses.found) >= 5
    for address in addresses.found:
        assert not urlsplit(address).netloc, address
        served = client.get(address)
        assert served.status_code == 200, address
        served.close()


def test_page_of_the_description_lets_the_browser_ask_nobody_else():
    rules = dict(
        rule.split(" ", 1) for rule in Client().get("/v1/docs")["Content-Security-Policy"].split("; ")
    )
    assert rules["default-src"] == "'self'"
    assert all("unsafe" not in sources and "http" not in sources for sources in rules.values())


def test_page_sends_the_description_to_no_validator():
    script = finders.find("smartgrid/docs.js")
    assert isinstance(script, str)
    assert "validatorUrl: null" in Path(script).read_text()
