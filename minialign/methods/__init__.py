"""The methods: each turns the log-probs of a batch into a loss and one push per token. Contract: `method.Method`."""

from minialign.methods.asft import ASFT
from minialign.methods.dft import DFT, DFT2
from minialign.methods.ift import IFT, IFTEq21
from minialign.methods.kto import KTO
from minialign.methods.method import Method
from minialign.methods.preference import CPO, DPO, DPOP, IPO, ORPO, RDPO, SPIN, SimPO, SimPOSFT, SLiC
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
