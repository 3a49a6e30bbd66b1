"""Commands one after the other in the processes that torchrun has started, for test_torchrun.py.

    torchrun --nproc-per-node 2 several.py '[["train", "--model", …], …]'

A command that is refused prints its sentence, as the program itself does, and the next one follows.
The last one ends as the program does, also when it is interrupted.
"""

import json
import sys
from importlib import import_module

from minialign.__main__ import flags_of, main

*others, last = json.loads(sys.argv[1])
for verb, *flags in others:
    try:
        import_module(f"minialign.verbs.{verb}").run(flags_of(verb, flags))
    except ValueError as error:
        print(error)
sys.exit(main(last))
