"""Which reader of a group reads which partitions: by number over all topics, so that a decision and its feedback are
one reader's; evenly; and moving as few as possible, one step at a time (KIP-429, cooperative rebalancing).

kafka-python's own cooperative assignor spreads the partitions of each topic on its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment


class CopartitionedAssignor(CooperativeStickyAssignor):  # type: ignore[misc]
    """Every member of the group must read the same topics, and these have equally many partitions."""

    name = "plaudit-copartitioned"

    def assign(self, cluster: Any, members: Sequence[Any]) -> dict[str, ConsumerProtocolAssignment]:
        """Called on the member that the group elected; gives each member its partitions of this round."""
        topics = {topic for member in members for topic in member.metadata.topics}
        numbers = {topic: set(cluster.partitions_for_topic(topic) or ()) for topic in topics}
        owned = {
            member.member_id: {number for each in member.metadata.owned_partitions or () for number in each.partitions}
            for member in members
        }
        shares = share_out(sorted(set().union(*numbers.values())), owned)
        return {
            member.member_id: ConsumerProtocolAssignment(
                self.version,
                [
                    (topic, sorted(numbers[topic] & shares[member.member_id]))
                    for topic in sorted(member.metadata.topics)
                ],
                b"",
            )
            for member in members
        }

    def forget(self) -> None:
        """What this member owned is lost: do not claim it when joining again."""
        self.member_assignment = None


def share_out(numbers: Sequence[int], owned: Mapping[str, set[int]]) -> dict[str, set[int]]:
    """What each member gets in this round.

    A number that has to move is given to nobody while its owner still holds it: the owner sees it gone, lets go, and
    asks for the next round, in which it is free.

    Args:
        numbers: to share out.
        owned: by member, what it says it owns.
    """
    claims: dict[int, list[str]] = {number: [] for number in numbers}
    for member, claimed in owned.items():
        for number in claimed & claims.keys():
            claims[number].append(member)
    # Of those that two claim, one has not heard yet that it lost it: nobody gets it before both let go.
    shares: dict[str, set[int]] = {member: set() for member in owned}
    free = []
    for number, owners in claims.items():
        if len(owners) == 1:
            shares[owners[0]].add(number)
        elif not owners:
            free.append(number)
    for number in free:
        poorest = min(sorted(shares), key=lambda member: len(shares[member]))
        shares[poorest].add(number)
    # Whoever has more than an even share lets go of the rest, for others to get in the next round.
    quota, extra = divmod(len(numbers), len(owned))
    for place, member in enumerate(sorted(shares, key=lambda member: (-len(shares[member]), member))):
        fair = quota + (place < extra)
        shares[member] -= set(sorted(shares[member])[fair:])
    return shares
