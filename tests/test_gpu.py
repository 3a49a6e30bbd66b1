"""The same numbers on a GPU; skipped where there is none."""

import copy

import pytest
import torch
from conftest import tiny_model

from minialign import METHODS
from minialign.data import collate
from minialign.train import fused_pass

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.mark.parametrize("name", ["sft", "asft", "dft", "dft2", "ift", "kto"])
def test_the_gradient_is_the_one_of_the_cpu(examples, name):
    results = []
    for device in "cpu", "cuda":
        model = tiny_model().float().to(device)
        method = METHODS[name](**({"n_examples": 3} if name.startswith("dft") else {}))
        method.prepare_data(model, examples, progress=False)
        (batch,) = method.prepare(model, [collate(examples).to(device)])
        loss, logps, _ = fused_pass(model, method, batch)
        results.append(
            (loss.cpu(), logps.cpu(), {n: p.grad.cpu() for n, p in model.named_parameters()})
        )
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_greedy_text_is_the_one_of_the_cpu():
    prompt, model = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]), tiny_model().float()
    lengths = torch.tensor([4, 2])
    expected = model.generate(prompt, 12, temperature=0, lengths=lengths)
    got = (
        copy.deepcopy(model)
        .cuda()
        .generate(prompt.cuda(), 12, temperature=0, lengths=lengths.cuda())
    )
    assert torch.equal(got.cpu(), expected)
