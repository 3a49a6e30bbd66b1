"""The methods: each turns the log-probs of a batch into a loss and one push per token. Contract: `method.Method`."""

from minialign.methods.asft import ASFT
from minialign.methods.dft import DFT, DFT2
from minialign.methods.ift import IFT, IFTEq21
from minialign.methods.method import Method
from minialign.methods.sft import SFT

METHODS: dict[str, type[Method]] = {
    "sft": SFT,
    "asft": ASFT,
    "dft": DFT,
    "dft2": DFT2,
    "ift": IFT,
    "ift_eq21": IFTEq21,
}
