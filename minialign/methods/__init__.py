"""The methods: each turns the log-probs of a batch into a loss and one push per token.

The contract is `method.Method`. A new method is a class in a file here, and one line in METHODS.
"""

from dataclasses import fields

from minialign.methods.asft import ASFT
from minialign.methods.dft import DFT, DFT2
from minialign.methods.ift import IFT, IFTEq21
from minialign.methods.kto import KTO
from minialign.methods.method import Method
from minialign.methods.preference import (
    CPO,
    DPO,
    DPOP,
    IPO,
    ORPO,
    RDPO,
    SPIN,
    SimPO,
    SimPOSFT,
    SLiC,
)
from minialign.methods.rrhf import RRHF
from minialign.methods.sft import SFT

METHODS: dict[str, type[Method]] = {
    "sft": SFT,
    "asft": ASFT,
    "dft": DFT,
    "dft2": DFT2,
    "ift": IFT,
    "dpo": DPO,
    "dpop": DPOP,
    "ipo": IPO,
    "kto": KTO,
    "orpo": ORPO,
    "cpo": CPO,
    "simpo": SimPO,
    "simpo_sft": SimPOSFT,
    "rdpo": RDPO,
    "rrhf": RRHF,
    "spin": SPIN,
    "slic": SLiC,
    "ift_eq21": IFTEq21,
}


def build_method(method: str | type[Method], hyper: dict, n_examples: int) -> Method:
    """A method, by its name in METHODS or its class, with these hyper-parameters.

    Methods that remember something of every example are told how many there are. ValueError if
    the method has no such hyper-parameter; it names those it has.
    """
    if isinstance(method, str):
        name, kind = method, METHODS[method]
    else:
        name, kind = method.__name__, method

    takes = {f.name for f in fields(kind) if f.init}
    known = takes - {"n_examples"}
    unknown = set(hyper) - known
    if unknown:
        has = as_flags(known) or "none"
        raise ValueError(f"{name} has no {as_flags(unknown)}; its hyper-parameters: {has}")

    if "n_examples" in takes:
        return kind(**hyper, n_examples=n_examples)
    return kind(**hyper)


def as_flags(names: set[str]) -> str:
    """ "--beta-odds, --lam": hyper-parameters as the command line calls them."""
    return ", ".join("--" + name.replace("_", "-") for name in sorted(names))
