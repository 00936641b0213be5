"""The closed loop on a simulated plant, beside the physical bound and other controllers.

The plant, the scenarios and the figures are those of the design's section 3; where its text leaves room,
they are read as follows, for every controller alike.

**Plant** (`plant`). Steps of 50 ms. A command waits its dead time; then the inverter approaches it as a
first order whose rate is limited: by `(command - power) / lag`, and at most by its ramp. (Ramp and lag one
after the other would make an inverter so slow that the goals for S1b and S3 exclude one that does nothing
but its best.) Loss of sun takes power at once, for an inverter gives nothing that the sun does not; when
the sun returns it approaches like after a command, without the dead time. Sun and load change in steps. An
inverter that gives too much gives `gain x command + bias` for a command above 0, and nothing for 0.
Controllers act at exact times; what they do and see takes place at the next step of the plant.

**Readings** (`draws`). Once a second at a random phase: the export, and the members' power of the same
moment (K2, K3: 0.5 s before). Each arrives after a latency of its own, never before the one ahead of it.
Noise is Gaussian, its standard deviation the stated share of Pn, on the meter only. A lost reading is lost
whole. S4 has no reading taken at 59 s or later. Each draw hangs on the seed and its own name alone: all
controllers, and where they can all scenarios and periods, meet the same ones. A new setpoint or limit is
known at once, and acted on at the next tick (ours: or the next reading).

**Ticks**. The first after a random share of the period, then every period +-15 %, uniformly. Peers and the
bound act at ticks only. Ours is stepped at ticks, when a reading arrives and at the time it asks for, as a
node would; what it wishes is taken within its bounds and rounded to the register's 1 %, to the nearest, as
the node's registers do; peers' commands likewise, the same for each member. Each member whose rounded
command changes is one write.

**Scenarios** (`scenarios`). All controllers begin at rest on the largest common command that meets the
limit if the inverters obey exactly, and have 60 s before the event. Limits and setpoints are the loop's
setpoint in mode `limit`. The design gives 260 s for S2; it serves for all that end with a steady value
after 60 s. S3 and K3 end 100 s after the sun's return, as does R1. S5's load is 30 kW for the first 20 s,
then 70 kW, and so on. X1 has S2's load after its event (10 kW; with 90 kW the others have no headroom), and
ends at 260 s. The fallback in S4 is 40 kW of the members' nominal power in percent, and is met within half
a step of the register; peers, which know no staleness, are given it at their first tick 10 s after the last
reading.

**Figures** (`figures`) count from 60 s to the end, at the plant's step. Violation is export above the limit
(S1, S1b: the setpoint), without tolerance. Overshoot is the greatest deviation from the reachable value on
the far side of where the event threw the export; where it threw it nowhere, above. Settling is the last
moment beyond 2 % of Pn, counted from its event; of several events the worst. Command travel is the sum of
all changes of the commands in percent, each member by its share of Pn. Over seeds each figure is the mean;
a ratio to the bound is the ratio of means.

**The bound** (`bound`) knows the true state of the plant and the load as of the newest reading that
arrived, and the inverters' errors. At each tick it commands 0 while the export of then is above the limit
of now, and until every member is at or below where it shall be; else the largest commands of the register
that do not exceed the limit. In S4 it commands 0 exactly 10 s after the last reading. Who answers readings
between ticks can be better than it, as can who stood below the limit before the event or had spread the
power unevenly.
"""
