"""One question per file, answered by a table, one sentence with its intervals, and a picture.

The claims are IFT's (arXiv 2405.11870). No study decides beforehand how its sentence ends: the
numbers fill it in. A study is a module with `run(flags)` and SEEDS, enough for its sentence.
"""

from toy.studies import designs, dose, labels, roads

STUDIES = {"labels": labels, "paths": roads, "lambda": dose, "designs": designs}
