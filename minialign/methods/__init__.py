"""The methods: each turns the log-probs of a batch into a loss and one push per token. Contract: `method.Method`."""

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


def build_method(kind: str | type[Method], hyper: dict, n_examples: int) -> Method:
    """A method by its name in METHODS, or by its class, with these hyper-parameters.

    `n_examples` is the size of the data set, for methods that keep a number per example. ValueError for a
    hyper-parameter that the method does not have, naming those it has.
    """
    cls = METHODS[kind] if isinstance(kind, str) else kind
    name = kind if isinstance(kind, str) else cls.__name__
    known = {f.name for f in fields(cls) if f.init}
    if unknown := set(hyper) - known:
        has = ", ".join(f"--{k.replace('_', '-')}" for k in sorted(known - {"n_examples"})) or "none"
        flags = ", ".join(f"--{k.replace('_', '-')}" for k in sorted(unknown))
        raise ValueError(f"{name} has no {flags}; its hyper-parameters: {has}")
    sized = {"n_examples": n_examples} if "n_examples" in known else {}
    return cls(**hyper, **sized)
