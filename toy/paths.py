"""The two demonstrations of IFT's lake, found by search: the optimal trajectory and a sub-optimal one. Nothing is learned or
sampled.
"""

import heapq

from torch import Tensor

Path = list[tuple[int, int]]        # [(state, action), ...]; the last action leads onto the goal, or to where the walk fails


def cheapest(edges: dict, sources: list[int], extra: dict[int, float]) -> tuple[dict[int, float], dict[int, tuple]]:
    """Dijkstra over edges {node: [(other node, cost, label)]} → distance of every node, and the (node, label) that it was
    reached from.

    `extra` is what entering a node costs beyond its edge.
    """
    distance = {s: 0.0 for s in sources}
    reached_from: dict[int, tuple] = {}
    queue = [(0.0, s) for s in sources]
    while queue:
        d, s = heapq.heappop(queue)
        if d > distance[s]:
            continue
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
    """Every (state, action, next state, cost). A step costs 1, − log of the chance that the ice agrees, and what the action
    gives away.
    """
    cost = 1 - P.log() + (V[:, None] - Q)[..., None]                    # (S, 4, S)
    return [(s, a, then, cost[s, a, then].item()) for s, a, then in (P > 0).nonzero().tolist() if letters[s] not in "HG"]


def best_path(P: Tensor, V: Tensor, Q: Tensor, optimal: Tensor, letters: str) -> Path:
    """The likeliest short trajectory of an optimal policy; on ice that is not slippery, a shortest path."""
    edges: dict[int, list] = {}
    for s, a, then, cost in moves(P, V, Q, letters):
        if optimal[s, a]:
            edges.setdefault(s, []).append((then, cost, a))
    distance, reached_from = cheapest(edges, [letters.index("S")], {})
    goal = min((s for s in distance if letters[s] == "G"), key=distance.get)
    return follow(reached_from, goal)


def worse_path(P: Tensor, V: Tensor, Q: Tensor, optimal: Tensor, letters: str) -> Path:
    """The best trajectory with a wrong action in it: an optimal way to some state, one wrong action there, then the cheapest
    way on.

    It should look like another way and not like a stumble, so a cell of the optimal trajectory costs 1 more, a cell entered
    twice 10 more, and never reaching the goal 100 more.
    """
    begin, goals = letters.index("S"), [s for s, letter in enumerate(letters) if letter == "G"]
    onward: dict[int, list] = {}                # optimal actions only, from the start
    back: dict[int, list] = {}                  # any action, from the goal backwards
    leads: dict[int, list] = {}
    for s, a, then, cost in moves(P, V, Q, letters):
        leads.setdefault(s, []).append((a, then, cost))
        if optimal[s, a]:
            onward.setdefault(s, []).append((then, cost, a))
        back.setdefault(then, []).append((s, cost, a))
    best = best_path(P, V, Q, optimal, letters)
    shared = {s: 1.0 for s, _ in best}
    distance, reached_from = cheapest(onward, [begin], shared)
    ways = [(d, follow(reached_from, s), s) for s, d in distance.items()]       # other optimal ways, and the trajectory itself
    ways += [(2.0 * i, best[:i], s) for i, (s, _) in enumerate(best)]
    choices = []
    for d, before, s in ways:
        wrong = [(a, then, cost) for a, then, cost in leads.get(s, []) if not optimal[s, a]]
        again = shared | {seen: 10.0 for seen, _ in before} | {s: 10.0}
        to_goal, leads_on = cheapest(back, goals, again) if wrong else ({}, {})
        for a, then, cost in wrong:
            after = follow(leads_on, then)[::-1] if then in to_goal else []
            choices.append((d + cost + to_goal.get(then, 100.0), before, (s, a), then, after))
    total, before, (s, a), then, after = min(choices, key=lambda choice: choice[0])
    tail, here = [], then
    for following, action in after:             # the search ran backwards: each pair says where an action leads
        tail.append((here, action))
        here = following
    return [*before, (s, a), *tail]
