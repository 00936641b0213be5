"""What a loop knows of its members: what they were asked for, what they give, and whether they follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edge.core.loop.following import Follower, advance, at_rest, command
from edge.core.loop.pid import LEAST_S
from edge.core.loop.sharing import Grid, Room
from edge.core.loop.terms import (
    ABSENT,
    ABSURD_KW,
    Dynamics,
    LoopImage,
    LoopSettings,
    Member,
    MemberImage,
    Sample,
)

# How a member is taken to follow of which nothing is known.
CAUTIOUS = Dynamics()
# All of these are in percent of a member's nominal power:
# it gives less than it is asked for when so much is missing;
LACK_PCT = 3.0
# what it is left above what it gives then, so that its sun's return is seen;
MARGIN_PCT = 5.0
# it rests when its model is so near to its command;
REST_PCT = 2.0
# it is still while its power stays so near to where it was;
STILL_PCT = 0.75
# members are inexact by so much, and more is something else;
INEXACT_PCT = 8.0
# the greatest trim upwards;
TRIM_UP_PCT = 1.0
# a trim beyond what is inexact is forgotten by so much with each reading that shows too little.
FORGET_PCT = 0.5
# A command lowered by so much, and followed, proves for so long that it is not sun that is missing.
PROOF_PCT, PROOF_S = 5.0, 20.0
# So many readings in a row show that a member gives less than asked.
LACK_READINGS = 2
# Gains beyond these would answer what is still under way in a plant that nobody knows.
FASTEST_KI, FASTEST_KP = 0.2, 0.5
# A deviation of a member that is smaller may be the last of its way: it is answered by and by.
CLEAR_PCT = 1.5
# A deviation counts for the time since the last one was seen, but for no longer than this.
JUDGED_S = 4.0
# Longer than readings are late.
REST_S = 2.5
# Longer than the slowest member lets a command wait.
STUCK_S = 12.0
# Longer than any member of which nothing is known waits, and comes into motion.
UNRESPONSIVE_S = 30.0


@dataclass(frozen=True, slots=True)
class MemberState:
    """What a loop remembers of a member.

    `value` is what it was asked for last, in percent, and `was_free` that the loop might command it;
    `allowance` how far it may move at once; `bound` what the connection limit left it. `follower` is what it
    should give by now, as it is known to follow, `rests_since_s` since when that is what it was asked for;
    `cautious` and `cautious_rests_since_s` the same if nothing were known of it. `power_kw` is what it gave
    when it was last read, at `read_s`; `still_kw` is where it has been since `still_since_s`, and `rose_s`
    when it last rose. `lacks` counts the readings in a row that showed too little; `is_stuck`: it stays above
    what it is asked for. `trim_kw` is what it is asked for above its share, `error_kw` and `slope_kw_per_s`
    what the trim had not answered at `judged_s`. It was lowered: at or below `proof_kw` it has followed,
    which until `proven_s` proves that it has sun. Since `off_since_s` its power has been where no sun could
    have brought it for what it was asked, and has come no farther down than `off_kw` (up, with its sign
    changed, where it gives too little); so long that it `is_unresponsive`.
    """

    value: float | None = None
    was_free: bool = False
    allowance: float = math.inf
    bound: float | None = None
    follower: Follower | None = None
    rests_since_s: float = math.inf
    cautious: Follower | None = None
    cautious_rests_since_s: float = math.inf
    power_kw: float | None = None
    read_s: float = -math.inf
    still_kw: float = math.inf
    still_since_s: float = math.inf
    rose_s: float = -math.inf
    lacks: int = 0
    is_stuck: bool = False
    trim_kw: float = 0.0
    judged_s: float = -math.inf
    error_kw: float = 0.0
    slope_kw_per_s: float = 0.0
    proof_kw: float = -math.inf
    proven_s: float = -math.inf
    off_since_s: float = math.inf
    off_kw: float = math.inf
    is_unresponsive: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """A member in one step: settings, memory and image, its value in percent, and what it gives in kW."""

    member: Member
    state: MemberState
    image: MemberImage
    value: float
    power_kw: float

    @property
    def tag(self) -> str:
        return self.member.tag

    @property
    def is_free(self) -> bool:
        return self.image.is_available and not self.image.is_held

    @property
    def is_lacking(self) -> bool:
        return self.state.lacks >= LACK_READINGS

    @property
    def expected_kw(self) -> float:
        """What it gives for its value if nothing is missing."""
        return self.given_kw(self.value)

    @property
    def surplus_kw(self) -> float:
        """What a member that does not come down gives too much: the others must make room for it."""
        return max(self.power_kw - self.expected_kw, 0.0) if self.state.is_stuck else 0.0

    @property
    def most_kw(self) -> float:
        """What it could give now, as far as that shows."""
        return self.power_kw + MARGIN_PCT * self.member.nominal_kw / 100

    @property
    def claim_kw(self) -> float:
        """What must be left for a member that the loop does not command."""
        if not self.image.is_available:
            return self.power_kw
        wish = self.image.wish
        # What it would hold without a limit, else it could never come to hold more than the limit left it.
        wished = self.expected_kw if wish is None or not abs(wish) < ABSURD_KW else self.given_kw(wish)
        if self.is_lacking:
            return min(wished, self.most_kw)
        return max(wished, self.power_kw)

    @property
    def room(self) -> Room:
        """Between what it may be asked to give, in what it gives."""
        member = self.member
        return Room(member.nominal_kw, self.given_kw(member.minimum), self.given_kw(member.maximum))

    @property
    def grid(self) -> Grid:
        member = self.member
        return Grid(member.resolution_pct, member.nominal_kw, member.minimum, member.maximum)

    def given_kw(self, value: float) -> float:
        return value * _kw_per_pct(self.member) - self.state.trim_kw

    def value_for(self, given_kw: float) -> float:
        """What to ask it for so that it gives so much, within its range."""
        value = (given_kw + self.state.trim_kw) / _kw_per_pct(self.member)
        return min(max(value, self.member.minimum), self.member.maximum)


def _kw_per_pct(member: Member) -> float:
    """What a percent is taken to give. A gain that was learned does not count here, see ADR 0033."""
    return member.nominal_kw / 100


def see(
    members: tuple[MemberState, ...],
    settings: LoopSettings,
    image: LoopImage,
    sample: Sample | None,
    now: float,
) -> tuple[Seen, ...]:
    """Look at all members at once; `sample` is None where no reading is new."""
    return tuple(
        _see(member, _heard(member, known, sample, now), image.members, settings, now)
        for member, known in zip(settings.members, members, strict=True)
    )


def _see(
    member: Member,
    known: MemberState,
    images: Mapping[str, MemberImage],
    settings: LoopSettings,
    now: float,
) -> Seen:
    shown = images.get(member.tag, ABSENT)
    recent = known.power_kw
    if shown.is_available and now - known.read_s > settings.stale_after_s:
        recent = None
    value = _value(member, known, shown, recent)
    known = _watched(member, _followed(member, known, value, now), shown, now)
    # A member whose power nobody reads is taken at its word: then the others' share does not depend on it.
    given = value * _kw_per_pct(member) - known.trim_kw if recent is None else recent
    return Seen(member, known, shown, value, given)


def _heard(member: Member, known: MemberState, sample: Sample | None, now: float) -> MemberState:
    power = None if sample is None else sample.members_kw.get(member.tag)
    if power is None or not abs(power) < ABSURD_KW:
        return known
    known = replace(known, power_kw=power, read_s=now)
    if abs(power - known.still_kw) <= STILL_PCT * member.nominal_kw / 100:
        return known
    rose_s = now if power > known.still_kw else known.rose_s
    return replace(known, still_kw=power, still_since_s=now, rose_s=rose_s)


def _value(member: Member, known: MemberState, shown: MemberImage, power: float | None) -> float:
    """What a member holds: as the node says, else as the loop remembers, else by what it gives."""
    if shown.value is not None and abs(shown.value) < ABSURD_KW:
        return shown.value
    if known.value is not None:
        return known.value
    if power is None:
        return member.maximum
    return min(max(power / _kw_per_pct(member), member.minimum), member.maximum)


def _followed(member: Member, known: MemberState, value: float, now: float) -> MemberState:
    """Let the member's models go on to this moment."""
    before = value if known.follower is None else known.follower.last
    follower = _gone_on(known.follower, value, member.dynamics, now)
    cautious = _gone_on(known.cautious, value, CAUTIOUS, now)
    known = replace(
        known,
        value=value,
        follower=follower,
        rests_since_s=_rests_since(follower, value, known.rests_since_s, now),
        cautious=cautious,
        cautious_rests_since_s=_rests_since(cautious, value, known.cautious_rests_since_s, now),
    )
    if value <= before - PROOF_PCT and known.power_kw is not None:
        # What it gives by and by must be as much lower, or nearly.
        proof_kw = known.power_kw - 0.7 * (before - value) * _kw_per_pct(member)
        known = replace(known, proof_kw=proof_kw, proven_s=now + PROOF_S)
    return known


def _gone_on(follower: Follower | None, value: float, dynamics: Dynamics, now: float) -> Follower:
    follower = advance(follower or at_rest(value, now_s=now), dynamics, to_s=now)
    return command(follower, value, dynamics=dynamics, now_s=now)


def _rests_since(follower: Follower, value: float, since_s: float, now: float) -> float:
    rests = abs(follower.power - value) <= REST_PCT and all(
        abs(sent - value) <= REST_PCT for _, sent in follower.under_way
    )
    return min(since_s, now) if rests else math.inf


def _watched(member: Member, known: MemberState, shown: MemberImage, now: float) -> MemberState:
    """Look whether a member does what it is asked for, sun or none, whoever asks.

    Sun explains less than asked, never more, and of a storage neither. By its trim a loop makes up for what a
    member does; here the command itself counts. One that moves the right way is on its way, however slowly.
    """
    if known.read_s != now:
        return known
    assert known.power_kw is not None
    assert known.follower is not None
    if not shown.is_available:
        # Nothing can be asked of it now: what it was found to be is neither confirmed nor refuted.
        return replace(known, off_since_s=math.inf, off_kw=math.inf)
    pct_kw = _kw_per_pct(member) * member.dynamics.gain
    by_now = (known.follower.power * pct_kw, known.follower.last * pct_kw)
    inexact_kw = INEXACT_PCT * member.nominal_kw / 100
    if known.power_kw > max(by_now) + inexact_kw:
        left_kw = known.power_kw
    elif member.is_storage and known.power_kw < min(by_now) - inexact_kw:
        left_kw = -known.power_kw
    else:
        return replace(known, off_since_s=math.inf, off_kw=math.inf, is_unresponsive=False)
    if left_kw < known.off_kw - STILL_PCT * member.nominal_kw / 100:
        return replace(known, off_since_s=now, off_kw=left_kw)
    is_unresponsive = known.is_unresponsive or now - known.off_since_s >= UNRESPONSIVE_S
    return replace(known, is_unresponsive=is_unresponsive)


def judged(one: Seen, settings: LoopSettings, now: float) -> Seen:
    """Look at what a member gives for what it is asked, if it was just read and should be at rest.

    That it gives too much is believed as soon as either model rests: to wait for one that is known to be slow
    would cost violation. That it gives too little is believed only when it should be there as it is known.
    """
    known = one.state
    assert known.follower is not None
    assert known.cautious is not None
    rests_since_s, model = known.rests_since_s, known.follower
    if known.cautious_rests_since_s < rests_since_s:
        rests_since_s, model = known.cautious_rests_since_s, known.cautious
    if known.read_s != now or now - rests_since_s < REST_S:
        return one
    pct_kw = one.member.nominal_kw / 100
    error = one.given_kw(model.power) - one.power_kw
    if error > 0 and now - known.rests_since_s < REST_S:
        return one
    if error > LACK_PCT * pct_kw + _usual_lack_kw(one.member, model.power):
        return replace(one, state=_lacking(known, pct_kw, now))
    if error < -INEXACT_PCT * pct_kw:
        if now - rests_since_s < STUCK_S:
            # It may wait longer than its model does.
            return one
        known = replace(known, is_stuck=True, lacks=0)
        if one.member.is_storage:
            # Full, and it will be asked again: there is nothing to learn.
            return replace(one, state=known)
    else:
        known = replace(known, is_stuck=False, lacks=0)
        if now - known.still_since_s < REST_S:
            # On its way, whatever its model says.
            return replace(one, state=known)
        is_proven = now <= known.proven_s and one.power_kw <= known.proof_kw
        if error > 0 and not is_proven:
            # Perhaps its sun is just short of its command: a trim would be wound up against it.
            return replace(one, state=replace(known, error_kw=0.0))
    return replace(one, state=_trimmed(known, error, settings, pct_kw=pct_kw, now=now))


def _usual_lack_kw(member: Member, value: float) -> float:
    """What it gives less than asked whatever the sun, as far as that was learned."""
    return max(1 - member.dynamics.gain, 0.0) * max(value, 0.0) * member.nominal_kw / 100


def _trimmed(
    known: MemberState, error: float, settings: LoopSettings, *, pct_kw: float, now: float
) -> MemberState:
    """A PID in its incremental form: what stands still meanwhile is kept."""
    # A deviation was there, too, while the member went to what the last one has led to.
    is_clear = abs(error) > CLEAR_PCT * pct_kw
    seconds = min(now - known.judged_s, JUDGED_S if is_clear else 1.0)
    rise = error - known.error_kw
    slope = rise / seconds if seconds >= LEAST_S else 0.0
    change = min(settings.ki, FASTEST_KI) * seconds * error
    if rise * error > 0 and is_clear:
        # It answers what is new. To take that back when the deviation shrinks would undo what shrank it.
        change += min(settings.kp, FASTEST_KP) * rise
    # Between two readings there is no more to be known of a slope.
    change += min(settings.kd, seconds) * (slope - known.slope_kw_per_s)
    trim = min(max(known.trim_kw + change, -100 * pct_kw), TRIM_UP_PCT * pct_kw)
    return replace(known, trim_kw=trim, judged_s=now, error_kw=error, slope_kw_per_s=slope)


def _lacking(known: MemberState, pct_kw: float, now: float) -> MemberState:
    """It gives less than it was asked for, by more than members are inexact: its sun is missing."""
    known = replace(known, error_kw=0.0, is_stuck=False)
    if known.trim_kw < -INEXACT_PCT * pct_kw:
        # It was lowered as one that does not obey, and now it does.
        known = replace(known, trim_kw=min(known.trim_kw + FORGET_PCT * pct_kw, -INEXACT_PCT * pct_kw))
    if now - known.rose_s < REST_S:
        return known
    return replace(known, lacks=min(known.lacks + 1, LACK_READINGS))


def asked(one: Seen, value: float, *, allowance: float, now: float) -> MemberState:
    """Remember what a member is asked for, and what of its allowance is left."""
    known = one.state
    assert known.follower is not None
    assert known.cautious is not None
    return replace(
        known,
        value=value,
        was_free=one.is_free,
        allowance=allowance,
        follower=command(known.follower, value, dynamics=one.member.dynamics, now_s=now),
        cautious=command(known.cautious, value, dynamics=CAUTIOUS, now_s=now),
    )
