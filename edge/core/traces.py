"""What this node may have left in a device: every value asked of its line and not confirmed since.

A write may have been carried out although its answer was lost, and the one after it may never have arrived.
Until the device confirms one, each of those asked since the last confirmation may be the value in force.
"""

from __future__ import annotations

from dataclasses import dataclass

# Beyond this many the two oldest become one span: what lies between them then counts as ours as well.
MOST_SPANS = 8


@dataclass(frozen=True, slots=True)
class Span:
    """Values from `lowest` to `highest`, as a ramp leaves them behind; usually one value."""

    lowest: float
    highest: float

    def is_near(self, value: float, *, tolerance: float) -> bool:
        return self.lowest - tolerance <= value <= self.highest + tolerance

    def including(self, value: float) -> Span:
        return Span(min(self.lowest, value), max(self.highest, value))


Traces = tuple[Span, ...]


def leave(traces: Traces, value: float, *, tolerance: float) -> Traces:
    """Add a value that may come to stand in the device."""
    for number, span in enumerate(traces):
        if span.lowest <= value <= span.highest:
            return traces
        if span.is_near(value, tolerance=tolerance):
            return (*traces[:number], span.including(value), *traces[number + 1 :])
    traces = (*traces, Span(value, value))
    if len(traces) > MOST_SPANS:
        oldest, next_oldest, *rest = traces
        hull = oldest.including(next_oldest.lowest).including(next_oldest.highest)
        traces = (hull, *rest)
    return traces


def contain(traces: Traces, value: float, *, tolerance: float) -> bool:
    """Tell whether a value found in the device is one of these."""
    return any(span.is_near(value, tolerance=tolerance) for span in traces)
