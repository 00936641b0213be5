"""The API guide's requests and answers, read out of its own text."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

GUIDE = Path(__file__).parent / "guide" / "api-guide.txt"
TEXT = GUIDE.read_text(encoding="utf-8")

_CURL = re.compile(r"^curl ", re.MULTILINE)
_ANSWER = re.compile(r"\s*Response:\s*(?=[\[{])")
# Where no body is printed, the guide says in words what comes instead.
_STATUS_IN_WORDS = re.compile(r"\s*A successful \w+ will return a (\d{3}) ")
# "Successful operations return a 200 OK status", below Error Handling.
_STATUS = 200


@dataclass(frozen=True)
class Example:
    """One request as printed, and the answer that stands below it.

    `answer` is None where no body is printed; `status` is None where the guide says nothing of an answer.
    """

    number: int
    method: str
    url: str
    headers: dict[str, str]
    body: str | None
    status: int | None
    answer: Any

    @property
    def path(self) -> str:
        """With its query."""
        parts = urlsplit(self.url)
        return f"{parts.path}?{parts.query}" if parts.query else parts.path

    @property
    def name(self) -> str:
        """What the guide calls it, and where it stands: two requests may share method and path."""
        return f"{self.number:02} {self.method} {self.path}"


def _curl_end(start: int) -> int:
    """Where a command ends: at the end of a line that neither goes on nor leaves a quote open."""
    end = start
    while True:
        end = TEXT.index("\n", end + 1)
        if TEXT[end - 1] == "\\":
            continue
        try:
            shlex.split(TEXT[start:end])
        except ValueError:
            continue
        return end


def _example(number: int, start: int) -> Example:
    end = _curl_end(start)
    words = shlex.split(TEXT[start:end].replace("\\\n", " "))
    program, *rest = words
    options: dict[str, list[str]] = {"-X": [], "-H": [], "-d": []}
    urls = []
    while rest:
        word = rest.pop(0)
        if word in options:
            options[word].append(rest.pop(0))
        else:
            urls.append(word)
    # Anything else would be an option this reader does not know.
    assert program == "curl"
    ((method,), (url,)) = options["-X"], urls
    headers = dict(line.split(": ", 1) for line in options["-H"])
    body = options["-d"][0] if options["-d"] else None
    answer, status = None, None
    if found := _ANSWER.match(TEXT, end):
        answer, _ = json.JSONDecoder().raw_decode(TEXT, found.end())
        status = _STATUS
    elif found := _STATUS_IN_WORDS.match(TEXT, end):
        status = int(found[1])
    return Example(number, method, url, headers, body, status, answer)


EXAMPLES = [_example(number, found.start()) for number, found in enumerate(_CURL.finditer(TEXT), start=1)]


def printed(method: str, path: str) -> Any:
    """The body the guide prints for this request, the first where it stands there twice."""
    return next(example.answer for example in EXAMPLES if (example.method, example.path) == (method, path))
