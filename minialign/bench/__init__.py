"""What the work costs on this machine, and what a training step will hold in memory.

compare.py  `minialign bench`: lets processes take turns at the same work, and prints tables
worker.py   our side of it, in a process of its own
peers/      the side of TRL and transformers, and what both sides share: the conversation, the clock
counts.py   the FLOPs and bytes that the work cannot do without
sheet.py    the memory of a training step, counted before it is allocated, and a meter to check it
"""
