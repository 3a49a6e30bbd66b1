"""A method for tests of the lab, in a file that a worker process reads in no time."""

from dataclasses import dataclass

from minialign.methods import METHODS


@dataclass
class Newcomer(METHODS["dft"]):
    """A method that nobody has heard of: DFT with half its push."""

    def weigh(self, logps, batch):
        loss, weights, info = super().weigh(logps, batch)
        return loss / 2, weights / 2, info
