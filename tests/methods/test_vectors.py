"""Every method against losses and gradients computed elsewhere: by running released code,
or from the formula where released code fails.
"""

import json
import math
from pathlib import Path

import pytest
import torch

from minialign import METHODS, Batch

CASES = json.loads((Path(__file__).parent / "vectors.json").read_text())["cases"]
DESCRIBES_PEERS = {"eps", "norm", "propagation", "vocab", "sign"}


def tensor(x):
    return torch.tensor([[float(v) for v in row] if isinstance(row, list) else float(row) for row in x], dtype=torch.float64)


def close(ours, theirs):
    theirs = tensor(theirs) if isinstance(theirs, list) else torch.tensor(float(theirs), dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def build(case, **extra):
    return METHODS[case["method"]](**{k: v for k, v in case["hyper"].items() if k not in DESCRIBES_PEERS}, **extra)


def answers(sums, lengths):
    """Summed log-probs and lengths, (A, B) lists → logps spread unevenly over the tokens, mask."""
    sums, lengths = tensor(sums), torch.tensor(lengths)
    mask = torch.arange(int(lengths.max())) < lengths[..., None]                        # (A, B, T)
    share = torch.linspace(1, 2, mask.shape[-1], dtype=torch.float64) * mask
    return torch.where(mask, sums[..., None] * share / share.sum(-1, keepdim=True).clamp(min=1), 0.0), mask


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
    B = max(good, bad)                                                                  # KTO is unpaired: the rest are absent

    def pair(w, l, filler):
        return [w + [filler] * (B - good), l + [filler] * (B - bad)]

    lengths = pair(x.get("len_w", [1] * good), x.get("len_l", [1] * bad), 0)
    logps, mask = answers(pair(x["logp_w"], x["logp_l"], math.nan), lengths)
    optional = {"kl_logps": "kl_logp", "kl_ref_logps": "kl_ref_logp"}
    batch = Batch(mask, ref_logps=tensor(pair(x["ref_logp_w"], x["ref_logp_l"], math.nan)) if "ref_logp_w" in x else None,
                  **{ours: tensor(x[theirs]) for ours, theirs in optional.items() if theirs in x})
    if case["hyper"].get("sign") == -1:
        pytest.skip("the SimPO table's sign of R-DPO; ours is the paper's")
    loss, weights, info = build(case).weigh(logps, batch)
    close(loss, expected["loss"])
    close(per_answer(weights, mask), pair(expected["g_w"], expected["g_l"], 0.0))
    if "per_example" in expected and "loss_per_example" in info and case["method"] != "kto":
        close(info["loss_per_example"], expected["per_example"])


@cases("ranking")
def test_rankings(case):
    x, expected = case["inputs"], case["expected"]
    logps, mask = answers([[v] for v in x["logp"]], [[n] for n in x["length"]])
    loss, weights, _ = build(case).weigh(logps, Batch(mask, rewards=tensor([[v] for v in x["reward"]])))
    close(loss, expected["loss"])
    close(per_answer(weights, mask)[:, 0], expected["g"])


@cases("dft_steps")
def test_discriminative_steps(case):
    method = build(case, n_examples=len(case["inputs"]["log_u_init"]))
    method.log_u.copy_(tensor(case["inputs"]["log_u_init"]))
    for t, step in enumerate(case["inputs"]["steps"]):
        sums = [step["logp_w"], *zip(*step["logp_l"], strict=True)]                     # (A, B)
        lengths = [step["len_w"], *zip(*step["len_l"], strict=True)] if "len_w" in step else [[1] * len(step["ids"])] * len(sums)
        logps, mask = answers([list(s) for s in sums], lengths)
        ref = tensor([[math.nan] * len(step["ids"]), *[list(r) for r in zip(*step["ref_logp_l"], strict=True)]]) \
            if "ref_logp_l" in step else None
        loss, weights, info = method.weigh(logps, Batch(mask, index=torch.tensor(step["ids"]), ref_logps=ref))
        gradient = per_answer(weights, mask)
        close(gradient[0], case["expected"]["g_w"][t])
        close(gradient[1:].T, case["expected"]["g_l"][t])
        close(method.log_u, case["expected"]["log_u"][t])
        s = logps.sum(-1)[0] / (mask.sum(-1)[0] if case["method"] == "dft2" else 1)
        objective = (-s + method.tau * method.log_u[step["ids"]]).mean()                # not the peer's surrogate
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
    """Labels as peers write them (−100 = not trained, shifted by one) → log-probs → weights → weights · (softmax − onehot)."""
    x, expected = case["inputs"], case["expected"]
    z = torch.tensor(x["logits"], dtype=torch.float64)
    labels = [x["labels"]] if "labels" in x else [x["labels_w"], x["labels_l"]]
    labels = torch.tensor(labels)[..., 1:]                                              # (A, B, T)
    z = z[:, :-1].unflatten(0, labels.shape[:2]) if "labels" not in x else z[None, :, :-1]
    mask = labels != -100
    y = labels.clamp(min=0)
    logps = z.log_softmax(-1).gather(-1, y[..., None])[..., 0]
    loss, weights, _ = build(case).weigh(logps, Batch(mask))
    gradient = weights[..., None] * (z.softmax(-1) - torch.nn.functional.one_hot(y, z.shape[-1]))
    close(loss, expected["loss"])
    theirs = torch.tensor(expected["g_logits"], dtype=torch.float64)[:, :-1]
    torch.testing.assert_close(gradient.flatten(0, 1), theirs, rtol=1e-10, atol=1e-12)


@cases("model_step")
def test_a_whole_ift_step_with_a_tiny_policy(case):
    """The first pass, the mixed embeddings and the weights, through the method's own hooks;
    the policy averages its inputs, then an MLP.
    """
    x, expected = case["inputs"], case["expected"]
    p = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in x["params"].items()}

    class Policy:
        head = p["W2"].T

        def embed(self, tokens):
            return p["E"][tokens].detach()

        def __call__(self, inputs, positions=None, segments=None):
            e = inputs if inputs.is_floating_point() else self.embed(inputs)
            mean = e.cumsum(1) / torch.arange(1, e.shape[1] + 1)[:, None]
            return torch.tanh(mean @ p["W1"] + p["b1"])

    from minialign.data import Example, collate
    examples = []
    for i, (row, label) in enumerate(zip(x["input_ids"], x["labels"], strict=True)):
        trained = [t for t, y in enumerate(label) if y != -100]
        assert trained == list(range(trained[0], trained[-1] + 1))
        examples.append(Example(i, row[: trained[0]], [row[trained[0] : trained[-1] + 1]]))
    method, batch = build(case), collate(examples, shared=False)       # the policy averages over rows
    # The bias of the output layer matters to the greedy guess; a policy with a bare head folds it in as one more hidden unit.
    model = Policy()
    one = torch.ones(*batch.rows.tokens.shape, 1, dtype=torch.float64)
    plain_call = Policy.__call__
    Policy.__call__ = lambda self, *a, **k: torch.cat([plain_call(self, *a, **k), one], -1)
    Policy.head = torch.cat([p["W2"], p["b2"][None]]).T
    batch = method.prepare(model, batch)
    hidden = model(method.inputs(model, batch)).flatten(0, 1)
    logits = hidden[batch.rows.source] @ model.head.T                                   # (A, B, T, V)
    logps = logits.log_softmax(-1).gather(-1, batch.rows.y[..., None])[..., 0]
    loss, weights, _ = method.weigh(logps.detach(), batch)
    close(loss.detach(), expected["loss"])
    (-(weights * logps)[batch.mask].sum()).backward()
    for name in "W1", "b1", "W2", "b2":
        close(p[name].grad, expected[f"g_{name}"])
