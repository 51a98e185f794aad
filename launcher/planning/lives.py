"""How long spot machines live, from public traces: what a plan assumes before a run has seen any preemption itself.

Machine-hours and preemptions are counted in the traces of "Can't Be Late" (NSDI'24; skypilot-org/spot-traces on
GitHub, the first 60 % of each): V100 and K80 on AWS, October 2022 to August 2023. No newer card has a public trace, so
these stand in for all and the plan says so; `--set checkpoint.mtbf_s=...` puts in what one knows better.
"""

from __future__ import annotations

from typing import NamedTuple

SOURCE = "spot traces of AWS V100 and K80, 2022-2023"


class Counted(NamedTuple):
    """Hours that machines were up, and how often one was taken."""

    hours: float
    taken: int

    @property
    def life_h(self) -> float:
        """The plain rate. A machine's chances get better with its age: within the first hour it is taken 3 to 17 times
        as often as after four, so a young run has more preemptions than this, an old one fewer."""
        return self.hours / self.taken


# Machines with one card, by region: aws-02-15-2023 (availability) and aws-04-22-2023 (preemption), V100.
_SINGLE: dict[str, Counted] = {
    "us-east-1": Counted(956.0 + 86.6, 659 + 52),
    "us-east-2": Counted(928.4, 172),
    "us-west-2": Counted(2207.7 - 519.6 + 156.4, 488 - 213 + 67),
}
_ALL_SINGLE = Counted(
    sum(counted.hours for counted in _SINGLE.values()), sum(counted.taken for counted in _SINGLE.values())
)
# Machines with eight: aws-10-26-2022, V100 and K80, us-west-2. In the same weeks and zones machines with one lived 2.5
# (K80) and 4 times (V100) as long.
_EIGHT = Counted(262.5 + 365.0, 442 + 253)


def expected_life_s(cloud: str, region: str, cards: int) -> float:
    """Seconds from the start of a spot machine until it is taken, on average.

    Several machines of a run are not taken at different times: gangs of 4 in the traces lived no shorter (4.1 h).
    """
    if cards >= 4:
        return _EIGHT.life_h * 3600.0
    known = _SINGLE.get(region) if cloud == "aws" else None
    return (known or _ALL_SINGLE).life_h * 3600.0
