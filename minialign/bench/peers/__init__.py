"""What we are timed beside: TRL and transformers, in an interpreter that has them.

peer.py is what that interpreter runs. turns.py is what it has in common with our own worker.py.
Neither imports anything of minialign, and minialign never imports a peer.
"""

from pathlib import Path

SCRIPT = Path(__file__).with_name("peer.py")

NEEDED = {
    "trl": "trl==1.16.0 transformers==5.23.0",
    "transformers": "transformers==5.23.0",
}

# For each of our methods, what the peer has that does the same work on the same data. With
# transformers that is a loop of our own. TRL has no ASFT; its ORPO reads the same two answers, and
# needs no reference either.
VARIANTS = {
    "trl": {
        "sft": ["sft"],
        "asft": ["orpo"],
        "orpo": ["orpo"],
        "simpo": ["simpo"],
        "cpo": ["cpo"],
        "dpo": ["dpo", "dpo, reference precomputed"],
    },
    "transformers": {name: [name] for name in ("sft", "asft", "orpo", "simpo", "dpo")},
}
