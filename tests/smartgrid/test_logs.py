from __future__ import annotations

import io
import json
import logging
import logging.config

import pytest
import structlog

from smartgrid.logs import logging_config


@pytest.fixture
def lines():
    """What one handler with our formatter writes, line by line."""
    before = structlog.get_config()
    config = logging_config(level="INFO")["formatters"]["json"]
    formatter = config["()"](foreign_pre_chain=config["foreign_pre_chain"], processors=config["processors"])
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.getLogger("tests.logs")
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    structlog.contextvars.clear_contextvars()
    # Else whoever took a logger before is out of reach of those who listen to what is logged.
    structlog.configure(**before)


def test_line_is_one_json_object_with_its_request_id(lines):
    structlog.contextvars.bind_contextvars(request_id="abc")
    structlog.stdlib.get_logger("tests.logs").info("site_created", site="a")
    (line,) = lines()
    assert (line["event"], line["site"], line["request_id"], line["level"]) == (
        "site_created",
        "a",
        "abc",
        "info",
    )


def test_line_of_a_library_has_the_same_form(lines):
    structlog.contextvars.bind_contextvars(request_id="abc")
    logging.getLogger("tests.logs").warning("lost %s", "it")
    (line,) = lines()
    assert (line["event"], line["request_id"], line["level"]) == ("lost it", "abc", "warning")


@pytest.mark.parametrize(
    "secret",
    ["tok_" + "1a" * 16, "Bearer abcdef.ghi", "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJhIn0.c2ln"],
)
def test_credential_never_reaches_a_line(lines, secret):
    log = structlog.stdlib.get_logger("tests.logs")
    log.info("got %s", secret, header=f"x {secret}", nested={"headers": [f"{secret}"]})
    logging.getLogger("tests.logs").error("got %s", secret)
    try:
        int(secret)
    except ValueError:
        log.exception("failed")
    assert len(lines()) == 3
    assert secret not in json.dumps(lines())


def test_value_under_a_secrets_name_is_hidden_whatever_it_looks_like(lines):
    log = structlog.stdlib.get_logger("tests.logs")
    log.info("issued", management_token="plain", headers=[{"Authorization": "hunter2"}])
    assert "plain" not in json.dumps(lines())
    assert "hunter2" not in json.dumps(lines())
