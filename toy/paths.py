"""The two demonstrations on a lake, found by search: the optimal trajectory and a sub-optimal one.

Nothing is learned or sampled.
"""

import heapq

from torch import Tensor

# [(state, action), …]; the last action leads onto the goal, or to where the walk fails.
Path = list[tuple[int, int]]


def cheapest(edges: dict, sources: list[int], extra: dict[int, float]) -> tuple[dict, dict]:
    """Dijkstra's search over edges {node: [(other node, cost, label)]}.

    `extra` is what entering a node costs beyond its edge. → the distance of every node that can
    be reached, and the (node, label) it was reached from.
    """
    distance = {s: 0.0 for s in sources}
    reached_from: dict[int, tuple] = {}
    queue = [(0.0, s) for s in sources]
    while queue:
        d, s = heapq.heappop(queue)
        if d > distance[s]:
            continue                        # a shorter way was found in the meantime
        for then, cost, label in edges.get(s, []):
            total = d + cost + extra.get(then, 0.0)
            if total < distance.get(then, float("inf")):
                distance[then] = total
                reached_from[then] = (s, label)
                heapq.heappush(queue, (total, then))
    return distance, reached_from


def follow(reached_from: dict[int, tuple], end: int) -> list[tuple]:
    """The (node, label) pairs from the source to `end`, the source first."""
    steps = []
    while end in reached_from:
        steps.append(reached_from[end])
        end = steps[-1][0]
    return steps[::-1]


def moves(P: Tensor, V: Tensor, Q: Tensor, letters: str) -> list[tuple[int, int, int, float]]:
    """Every (state, action, next state, cost).

    A step costs 1, and − log of the chance that the ice agrees, and the value it gives away.
    """
    cost = 1 - P.log() + (V[:, None] - Q)[..., None]                    # (S, 4, S)
    found = []
    for s, a, then in (P > 0).nonzero().tolist():
        if letters[s] not in "HG":
            found.append((s, a, then, cost[s, a, then].item()))
    return found


def best_path(P: Tensor, V: Tensor, Q: Tensor, optimal: Tensor, letters: str) -> Path:
    """The likeliest short trajectory of an optimal policy; without slips, a shortest path."""
    edges: dict[int, list] = {}
    for s, a, then, cost in moves(P, V, Q, letters):
        if optimal[s, a]:
            edges.setdefault(s, []).append((then, cost, a))
    distance, reached_from = cheapest(edges, [letters.index("S")], {})
    goal = min((s for s in distance if letters[s] == "G"), key=distance.get)
    return follow(reached_from, goal)


def worse_path(P: Tensor, V: Tensor, Q: Tensor, optimal: Tensor, letters: str, best: Path) -> Path:
    """The best trajectory with a wrong action in it.

    It takes an optimal way to some state, one wrong action there, then the cheapest way on. It
    should look like another way and not like a stumble, so a cell of the optimal trajectory costs
    1 more, a cell entered twice 10 more, and never reaching the goal 100 more.
    """
    goals = [s for s, letter in enumerate(letters) if letter == "G"]
    onward: dict[int, list] = {}        # optimal actions only, from the start
    wrong: dict[int, list] = {}         # the other actions, by the state they are taken in
    back: dict[int, list] = {}          # any action, from the goal backwards
    for s, a, then, cost in moves(P, V, Q, letters):
        if optimal[s, a]:
            onward.setdefault(s, []).append((then, cost, a))
        else:
            wrong.setdefault(s, []).append((a, then, cost))
        back.setdefault(then, []).append((s, cost, a))

    # Ways to the wrong action: optimal ways beside the trajectory, and the trajectory itself.
    shared = {s: 1.0 for s, _ in best}
    distance, reached_from = cheapest(onward, [letters.index("S")], shared)
    ways = [(d, follow(reached_from, s), s) for s, d in distance.items()]
    ways += [(2.0 * i, best[:i], s) for i, (s, _) in enumerate(best)]

    # Each way, each wrong action at its end, and from where that leads the cheapest way on.
    choices = []
    for d, before, s in ways:
        if s not in wrong:
            continue
        again = shared | {visited: 10.0 for visited, _ in before} | {s: 10.0}
        to_goal, leads_on = cheapest(back, goals, again)
        for a, then, cost in wrong[s]:
            after = follow(leads_on, then)[::-1] if then in to_goal else []
            total = d + cost + to_goal.get(then, 100.0)
            choices.append((total, [*before, (s, a)], then, after))
    _, path, here, after = min(choices, key=lambda choice: choice[0])

    # The search ran backwards: each pair of `after` says where an action leads.
    for following, action in after:
        path.append((here, action))
        here = following
    return path
