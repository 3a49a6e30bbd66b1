"""Frozen Lake: the Markov decision process in which IFT's argument can be checked exactly. Nothing in minialign imports it."""
