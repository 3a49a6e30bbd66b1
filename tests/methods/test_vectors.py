"""Every method against losses and gradients computed elsewhere.

That is by running released code, or from the formula where released code fails.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from naive import PLAIN

from minialign import METHODS, Batch
from minialign.data import Counts, Example, collate
from minialign.methods import build_method

CASES = json.loads((Path(__file__).parent / "vectors.json").read_text())["cases"]
DESCRIBES_PEERS = {"eps", "norm", "propagation", "vocab", "sign"}


def number(x):
    """JSON has no infinities: vectors.json writes them as strings."""
    return [number(v) for v in x] if isinstance(x, list) else float(x)


def tensor(x):
    return torch.tensor(number(x), dtype=torch.float64)


def close(ours, theirs):
    torch.testing.assert_close(ours, tensor(theirs), rtol=1e-10, atol=1e-12)


def build(case, n_examples=0):
    hyper = {k: v for k, v in case["hyper"].items() if k not in DESCRIBES_PEERS}
    return build_method(case["method"], hyper, n_examples)


def test_every_method_of_the_papers_has_vectors():
    assert {c["method"] for c in CASES} == {name for name in METHODS if name in PLAIN}


def answers(sums, lengths):
    """Summed log-probs and lengths, (A, B) lists → logps spread unevenly over the tokens, mask."""
    sums, lengths = tensor(sums), torch.tensor(lengths)
    mask = torch.arange(int(lengths.max())) < lengths[..., None]                        # (A, B, T)
    share = torch.linspace(1, 2, mask.shape[-1], dtype=torch.float64) * mask
    share = share / share.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(mask, sums[..., None] * share, 0.0), mask


def per_answer(weights, mask):
    """Gradient with respect to each summed log-prob: all tokens of an answer carry the same weight,
    and it is minus that gradient.
    """
    first = weights[..., 0]
    assert torch.equal(weights, first[..., None] * mask), "a weight differs within an answer"
    return -first


def cases(kind):
    chosen = [c for c in CASES if c["kind"] == kind and c["method"] in METHODS]
    return pytest.mark.parametrize("case", chosen, ids=[c["id"] for c in chosen])


@cases("sequence")
def test_pairs(case):
    x, expected = case["inputs"], case["expected"]
    good, bad = len(x["logp_w"]), len(x["logp_l"])
    B = max(good, bad)                                  # KTO is unpaired: the rest are absent

    def pair(w, l, filler):
        return [w + [filler] * (B - good), l + [filler] * (B - bad)]

    lengths = pair(x.get("len_w", [1] * good), x.get("len_l", [1] * bad), 0)
    logps, mask = answers(pair(x["logp_w"], x["logp_l"], math.nan), lengths)
    given = {}
    if "ref_logp_w" in x:
        given["ref_logps"] = tensor(pair(x["ref_logp_w"], x["ref_logp_l"], math.nan))
    if "kl_logp" in x:
        given["kl_logps"] = tensor(x["kl_logp"])
        given["kl_ref_logps"] = tensor(x["kl_ref_logp"])
    if case["hyper"].get("sign") == -1:
        pytest.skip("the SimPO table's sign of R-DPO; ours is the paper's")
    loss, weights, info = build(case).weigh(logps, Batch(mask, **given))
    close(loss, expected["loss"])
    close(per_answer(weights, mask), pair(expected["g_w"], expected["g_l"], 0.0))
    if "per_example" in expected and "loss_per_example" in info:
        close(info["loss_per_example"], expected["per_example"])


@cases("ranking")
def test_rankings(case):
    x, expected = case["inputs"], case["expected"]
    logps, mask = answers([[v] for v in x["logp"]], [[n] for n in x["length"]])
    batch = Batch(mask, rewards=tensor([[v] for v in x["reward"]]))
    loss, weights, _ = build(case).weigh(logps, batch)
    close(loss, expected["loss"])
    close(per_answer(weights, mask)[:, 0], expected["g"])


def by_answer(wanted, negatives):
    """A list of B, and B lists of K, the numbers of each example's negatives → (A, B) lists."""
    return [wanted, *map(list, zip(*negatives, strict=True))]


@cases("dft_steps")
def test_discriminative_steps(case):
    method = build(case, n_examples=len(case["inputs"]["log_u_init"]))
    method.log_u.copy_(tensor(case["inputs"]["log_u_init"]))
    for t, step in enumerate(case["inputs"]["steps"]):
        B = len(step["ids"])
        sums = by_answer(step["logp_w"], step["logp_l"])                                # (A, B)
        lengths = [[1] * B for _ in sums]
        if "len_w" in step:
            lengths = by_answer(step["len_w"], step["len_l"])
        logps, mask = answers(sums, lengths)
        ref_logps = None
        if "ref_logp_l" in step:
            ref_logps = tensor(by_answer([math.nan] * B, step["ref_logp_l"]))
        batch = Batch(mask, index=torch.tensor(step["ids"]), ref_logps=ref_logps)
        loss, weights, info = method.weigh(logps, batch)
        gradient = per_answer(weights, mask)
        close(gradient[0], case["expected"]["g_w"][t])
        close(gradient[1:].T, case["expected"]["g_l"][t])
        close(method.log_u, case["expected"]["log_u"][t])
        s = logps.sum(-1)[0]
        if case["method"] == "dft2":
            s = s / mask.sum(-1)[0]
        objective = (-s + method.tau * method.log_u[step["ids"]]).mean()  # not a surrogate
        torch.testing.assert_close(loss, objective)


@cases("token")
def test_token_weights(case):
    mask = torch.tensor(case["inputs"]["mask"], dtype=torch.bool)[None]                 # (1, B, T)
    loss, weights, info = build(case).weigh(tensor(case["inputs"]["token_logp"])[None], Batch(mask))
    close(loss, case["expected"]["loss"])
    close(-weights[0], case["expected"]["g"])
    if "per_example" in case["expected"]:
        close(info["loss_per_example"], case["expected"]["per_example"])


@cases("logits")
def test_gradients_at_the_logits(case):
    """Labels as peers write them (−100 = not trained, shifted by one) → log-probs → weights
    → weights · (softmax − onehot).
    """
    x, expected = case["inputs"], case["expected"]
    z = torch.tensor(x["logits"], dtype=torch.float64)
    if "labels" in x:
        labels = torch.tensor([x["labels"]])[..., 1:]                                   # (1, B, T)
    else:
        labels = torch.tensor([x["labels_w"], x["labels_l"]])[..., 1:]                  # (2, B, T)
    z = z[:, :-1].unflatten(0, labels.shape[:2])                                    # (A, B, T, V)
    mask = labels != -100
    y = labels.clamp(min=0)
    logps = z.log_softmax(-1).gather(-1, y[..., None])[..., 0]
    loss, weights, _ = build(case).weigh(logps, Batch(mask))
    gradient = weights[..., None] * (z.softmax(-1) - torch.nn.functional.one_hot(y, z.shape[-1]))
    close(loss, expected["loss"])
    theirs = torch.tensor(expected["g_logits"], dtype=torch.float64)[:, :-1]
    torch.testing.assert_close(gradient.flatten(0, 1), theirs, rtol=1e-10, atol=1e-12)


class Policy:
    """The peer's tiny policy: it averages the embeddings it has read so far, then an MLP.

    The bias of the output layer matters to the greedy guess. A head has none here, so the bias is
    folded in as the weights of one more hidden unit that is always 1.
    """

    def __init__(self, p):
        self.p = p
        self.head = torch.cat([p["W2"], p["b2"][None]]).T

    def embed(self, tokens):
        return self.p["E"][tokens].detach()

    def __call__(self, inputs, positions=None, texts=None):
        e = inputs if inputs.is_floating_point() else self.embed(inputs)
        so_far = torch.arange(1, e.shape[1] + 1)[:, None]
        hidden = torch.tanh(e.cumsum(1) / so_far @ self.p["W1"] + self.p["b1"])
        return torch.cat([hidden, torch.ones_like(hidden[..., :1])], -1)


@cases("model_step")
def test_a_whole_ift_step_with_a_tiny_policy(case):
    """The first pass, the mixed embeddings and the weights, through the method's own hooks."""
    x, expected = case["inputs"], case["expected"]
    p = {}
    for name, value in x["params"].items():
        p[name] = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    examples = []
    for i, (row, label) in enumerate(zip(x["input_ids"], x["labels"], strict=True)):
        trained = [t for t, y in enumerate(label) if y != -100]
        assert trained == list(range(trained[0], trained[-1] + 1))
        examples.append(Example(i, row[: trained[0]], [row[trained[0] : trained[-1] + 1]]))

    # The policy averages over a whole row, so each example is a part of its own.
    tokens = sum(len(e.answers[0]) for e in examples)
    counts = Counts(len(examples), len(examples), tokens)
    method, model = build(case), Policy(p)
    parts = method.prepare(model, [collate([e], counts) for e in examples])
    total = 0.0
    for part in parts:
        hidden = model(method.inputs(model, part)).flatten(0, 1)
        logits = hidden[part.rows.source] @ model.head.T                    # (A, B, T, V)
        logps = logits.log_softmax(-1).gather(-1, part.rows.y[..., None])[..., 0]
        loss, weights, _ = method.weigh(logps.detach(), part)
        (-(weights * logps)[part.mask].sum()).backward(retain_graph=True)
        total = total + loss
    close(total, expected["loss"])
    for name in "W1", "b1", "W2", "b2":
        close(p[name].grad, expected[f"g_{name}"])
