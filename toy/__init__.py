"""Frozen Lake: the Markov decision process on which IFT's argument can be checked exactly.

Begin with lake.py, the process itself: what is optimal, and how often a policy succeeds, are solved
for. policy.py has the small networks that walk on it, IFT's residual, and score → weigh → push.
compare.py runs every method and prints the table of `python -m toy`. labels.py asks what IFT's
labels are worth. Nothing in minialign imports this folder.
"""
