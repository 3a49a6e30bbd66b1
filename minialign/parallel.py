"""Several processes train one model together: which of them am I, and what do the others know?

    torchrun --nproc-per-node 8 -m minialign train …

starts eight processes, ranks 0 to 7, each with a GPU of its own. All are given the same flags and
read the same data. Each holds an eighth of every weight, gradient and moment, as its rows of the
tensor; torch's FSDP2 brings a layer together whenever it is needed, and adds up what the ranks
have found out about its gradient. The prompts of an update are dealt out. Rank 0 alone speaks and
writes files.

Without torchrun there is one rank, and every function here gives back what it was given.

Ranks wait for one another in `gather`, in all that calls it, in `whole`, and in the layers of a
model that is shared out. So every rank must come to these places, in the same order.
"""

import datetime
import os
import sys
import time
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = datetime.timedelta(hours=1)      # others wait so long, while rank 0 writes a file, say

# --------------------------------------------------------------------------------- who am I


def begin(device: str) -> None:
    """Meet the other processes that torchrun has started, if it has; the first thing a verb does.

    `device` is what the user asked for. From here on "cuda" is the GPU of this rank. ValueError
    if there is none, or if the user has named a single GPU for all.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        return
    if device.startswith("cuda:"):
        raise ValueError(f"--device {device} is one GPU, and torchrun has started several "
                         "processes; give --device cuda")
    if device in ("cuda", "auto") and torch.cuda.is_available():
        here, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if here >= there:
            raise ValueError(f"torchrun has started more processes than there are GPUs, {there}; "
                             f"give --nproc-per-node {there}")
        torch.cuda.set_device(here)
    dist.init_process_group(timeout=PATIENCE)
    if not first():
        sys.stdout = open(os.devnull, "w")


def end() -> None:
    """Part from the others. A process that fails does not come here, and torchrun ends them."""
    if world() > 1:
        dist.destroy_process_group()


def world() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this process is, from 0."""
    return dist.get_rank() if world() > 1 else 0


def first() -> bool:
    """Is this the rank that speaks and writes files?"""
    return rank() == 0


def give_way() -> None:
    """Let rank 0 speak first.

    What is wrong with the flags or the data all ranks find out together. torchrun ends the others
    once one has failed, and so the user reads it once.
    """
    if not first():
        time.sleep(3)


# ------------------------------------------------------------------------- what the others know


def gather(thing) -> list:
    """What every rank has: [rank 0's, rank 1's, …], on all ranks. For small things."""
    if world() == 1:
        return [thing]
    everyone = [None] * world()
    dist.all_gather_object(everyone, thing)
    return everyone


def wait() -> None:
    """Go on once all ranks are here."""
    gather(None)


def joined(x: Tensor) -> Tensor:
    """The tensors (n, …) of all ranks, one behind the other: (Σn, …)."""
    if world() == 1:
        return x
    return torch.cat(gather(x.cpu())).to(x.device)


def added(sums: dict[str, float]) -> dict[str, float]:
    """{name: sum} of what each rank has counted by itself, added up over all ranks."""
    total = dict.fromkeys(sums, 0.0)
    for part in gather(sums):
        for name, value in part.items():
            total[name] += value
    return total


def share_memory(memory: dict[str, Tensor], visited: list[int]) -> None:
    """Tell the others what has changed in tables that have a row for every example.

    visited  the examples, and so the rows, that this rank has changed and no other
    """
    if world() == 1 or not memory:
        return
    rows = {name: table[visited] for name, table in memory.items()}
    for theirs, changed in gather((visited, rows)):
        for name, values in changed.items():
            memory[name][theirs] = values


# ------------------------------------------------------------------------- who does what


def mine(things: list) -> list:
    """This rank's share: of things in order of size each rank gets as many large ones."""
    return things[rank() :: world()]


def even_out(passes: list[list]) -> list[list]:
    """This rank's passes, and empty ones behind them, as many as the rank with the most has.

    Layers are brought together for all ranks at once, so all must go through them equally often.
    """
    most = max(gather(len(passes)))
    return passes + [[]] * (most - len(passes))


def dealt(work: Callable, things: list) -> Iterator:
    """work(thing) for every thing in turn, as map does. Each rank does a share, all get all.

    A rank that has nothing left to do does the last thing once more, for the reason told above.
    """
    for begin in range(0, len(things), world()):
        done = gather(work(things[min(begin + rank(), len(things) - 1)]))
        yield from done[: len(things) - begin]


# ------------------------------------------------------------------------- a model that is shared


def loaded_on(device: str) -> str:
    """Where to read a model that is about to be shared out: no GPU need hold all of it."""
    return device if world() == 1 else "cpu"


def shard(model, device: str) -> None:
    """Share a Transformer out among the ranks: each keeps some rows of every parameter.

    A layer is a group: its parameters come together when it is computed, and go again. So are the
    embedding tables, which IFT reads by themselves, and the head. The head is there as a whole
    from the end of the model's forward pass on, until the backward pass is done.
    """
    if world() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # A tied head is the embedding table: the whole layer, so that the two remain one group.
    if model.config.tie:
        model.lm_head = model.model["embed_tokens"]

    # The whole model comes last. It gets what is in no group yet, the weights of the last norm.
    groups = [*model.model["layers"], model.model["embed_tokens"]]
    if model.config.pos == "learned":
        groups.append(model.model["embed_positions"])
    if not model.config.tie:
        groups.append(model.lm_head)
    mesh = init_device_mesh(torch.device(device).type, (world(),))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for module in [*groups, model]:
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    model.register_forward_hook(bring_head)

    # Each rank's loss is divided by the counts of the whole update, so gradients are added up. FSDP
    # would take their mean. The names are those of torch 2.13; torch 2.6 had another one.
    for module in [*groups, model]:
        if hasattr(module, "set_gradient_divide_factor"):
            module.set_gradient_divide_factor(1.0)
        else:
            module.set_reduce_scatter_divide_factor(1.0)
        if hasattr(module, "set_force_sum_reduction_for_comms"):
            module.set_force_sum_reduction_for_comms(True)


def bring_head(model, inputs, hidden) -> None:
    """After each forward pass: the whole head, as the parameters are now."""
    model.lm_head.reshard()
    model.lm_head.unshard()


def parameters(model) -> dict[str, Tensor]:
    """{name: parameter} of a model; of one that is shared out, those that each rank has rows of."""
    if hasattr(model.lm_head, "reshard"):
        model.lm_head.reshard()                         # a forward pass has brought it together
    return dict(model.named_parameters())


def local(x: Tensor) -> Tensor:
    """The rows of a tensor that lie on this rank; to change them is to change the tensor."""
    return x.detach().to_local() if shared(x) else x


def whole(x: Tensor) -> Tensor:
    """The tensor with the rows of all ranks."""
    return x.detach().full_tensor() if shared(x) else x


def shared(x: Tensor) -> bool:
    """Do the ranks have some rows each?"""
    return world() > 1 and hasattr(x, "full_tensor")


def rows_before(x: Tensor) -> int:
    """How many rows of a tensor lie on ranks before this one.

    Every rank has as many, but for the last ones, which may have fewer or none.
    """
    return min(len(x), rank() * -(-len(x) // world())) if shared(x) else 0


def fill(x: Tensor, values: Tensor) -> None:
    """Give a tensor these values; each rank takes its own rows of them."""
    rows, begin = local(x.detach()), rows_before(x)
    rows.copy_(values[begin : begin + len(rows)] if shared(x) else values)


def whole_state(model) -> dict[str, Tensor]:
    """{name: tensor} of a model on the CPU of rank 0; {} elsewhere. One tensor comes at a time."""
    state = {}
    for name, x in model.state_dict().items():
        x = whole(x)
        if first():
            state[name] = x.cpu()
    return state
