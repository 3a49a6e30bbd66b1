"""Several processes learn what one learns: every method, on the CPU, over gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import together
import torch

from minialign import parallel
from minialign.data import collate


def free_port() -> str:
    """A port that nobody uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{number of processes: {case: what it returned}}; one process is this one."""
    folder = tmp_path_factory.mktemp("together")
    script = [sys.executable, together.__file__, str(folder), free_port(), free_port()]
    knows = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1",
             "PYTHONPATH": str(Path(__file__).parents[2])}
    processes = []
    for rank in range(3):                                   # as torchrun starts them
        here = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(subprocess.Popen(script, env=os.environ | knows | here))
    alone = {case: together.result(case) for case in together.TURNS[2] if case != "held"}
    assert [process.wait(timeout=600) for process in processes] == [0, 0, 0]
    several = {n: torch.load(folder / f"{n}.pt", weights_only=True) for n in together.TURNS}
    return {1: alone, **several}


TRAINED = []
for n, cases in together.TURNS.items():
    TRAINED += [(n, case) for case in cases if case in together.CASES]


@pytest.mark.parametrize("n, case", TRAINED, ids=str)
def test_several_processes_learn_what_one_learns(results, n, case):
    ours, theirs = results[1][case], results[n][case]
    close = {"rtol": 1e-5, "atol": 1e-5}
    for one, other in zip(ours["records"], theirs["records"], strict=True):
        assert list(one) == list(other)
        torch.testing.assert_close(list(other.values()), list(one.values()), **close)
    # Adam divides a gradient by its size. So where it is nothing but rounding errors it counts as
    # much as elsewhere: in all of GPT-2's key biases, which shift all scores of a query alike, and
    # by chance in a number or two of a matrix.
    for name, p in ours["parameters"].items():
        if not (name.endswith("k_proj.bias") and together.CASES[case][1] == "gpt2"):
            off = (theirs["parameters"][name] - p).abs() > 1e-5
            assert off.sum() <= 2, name
    torch.testing.assert_close(theirs["memory"], ours["memory"], **close)
    torch.testing.assert_close(theirs["logps"], ours["logps"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [2, 3])
def test_rounding_does_not_depend_on_how_many_share_the_weights(results, n):
    """AdamW in bfloat16, the same gradients: the same parameters, bit for bit."""
    ours, theirs = results[1]["stepped"], results[n]["stepped"]
    torch.testing.assert_close(theirs["parameters"], ours["parameters"], rtol=0, atol=0)
    assert theirs["norms"] == pytest.approx(ours["norms"], rel=1e-6)


def test_a_rank_allocates_no_more_than_its_sheet_says(results):
    """What is fetched ahead of time is not always there at the same moment."""
    for used, said in results[2]["held"].values():
        assert 0.7 * said < used < 1.1 * said


def test_one_process_gets_back_what_it_gave(model):
    parallel.begin("cpu")
    things, x = [3, 1, 2], torch.ones(2, 3)
    assert (parallel.world(), parallel.rank(), parallel.first()) == (1, 0, True)
    assert parallel.gather(things) == [things] and parallel.mine(things) == things
    assert parallel.even_out([[1], [2]]) == [[1], [2]] and parallel.rows_before(x) == 0
    assert parallel.joined(x) is parallel.local(x) is parallel.whole(x) is x
    assert list(parallel.dealt(abs, [-1, 2])) == [1, 2] and parallel.added({"a": 2.0}) == {"a": 2.0}
    kinds = {type(module) for module in model.modules()}
    parallel.shard(model, "cpu")
    assert {type(module) for module in model.modules()} == kinds


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
@pytest.mark.parametrize("name", together.METHODS)
def test_a_pass_without_examples_adds_nothing(name, shape):
    """What a rank does that has fewer passes than others."""
    from minialign.train import fused_pass

    model = together.tiny_model(shape)
    method = together.build_method(name, {}, 11)
    data = together.examples()
    method.prepare_data(model, data, progress=False)
    before = {key: x.clone() for key, x in method.state_dict().items()}
    _, empty = method.prepare(model, [collate(data), collate([])])
    loss, logps, info = fused_pass(model, method, empty)
    assert loss == 0 and logps.numel() == 0 and all(x.numel() == 0 for x in info.values())
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    torch.testing.assert_close(method.state_dict(), before)
