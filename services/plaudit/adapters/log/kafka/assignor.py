"""Assignment of partitions to the readers of a group: by number over all topics, so that one reader has a decision and
its feedback; evenly; and with as few moves as possible, in steps (KIP-429, cooperative rebalancing).

kafka-python's own cooperative assignor assigns the partitions of each topic separately.
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
        """Partitions of each member in this round, by member id. Called on the member that leads the group."""
        topics = {topic for member in members for topic in member.metadata.topics}
        numbers = {topic: set(cluster.partitions_for_topic(topic) or ()) for topic in topics}
        owned = {
            member.member_id: {number for each in member.metadata.owned_partitions or () for number in each.partitions}
            for member in members
        }
        shares = assign_evenly(sorted(set().union(*numbers.values())), owned)
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
        """Claim nothing when joining again: the partitions of this member are lost."""
        self.member_assignment = None


def assign_evenly(numbers: Sequence[int], owned: Mapping[str, set[int]]) -> dict[str, set[int]]:
    """Partition numbers of each member in this round.

    A number that has to move stays unassigned while its owner still holds it: the owner sees it revoked, releases it,
    and asks for the next round, in which it is free.

    Args:
        numbers: partition numbers to assign.
        owned: partition numbers that each member claims to own.
    """
    claims: dict[int, list[str]] = {number: [] for number in numbers}
    for member, claimed in owned.items():
        for number in claimed & claims.keys():
            claims[number].append(member)
    # Where two members claim a number, one does not know yet that it lost it: unassigned until both release it.
    shares: dict[str, set[int]] = {member: set() for member in owned}
    free = []
    for number, owners in claims.items():
        if len(owners) == 1:
            shares[owners[0]].add(number)
        elif not owners:
            free.append(number)
    for number in free:
        fewest = min(sorted(shares), key=lambda member: len(shares[member]))
        shares[fewest].add(number)
    # Members with more than an even share release the rest, which others get in the next round.
    quota, extra = divmod(len(numbers), len(owned))
    for place, member in enumerate(sorted(shares, key=lambda member: (-len(shares[member]), member))):
        fair = quota + (place < extra)
        shares[member] -= set(sorted(shares[member])[fair:])
    return shares
