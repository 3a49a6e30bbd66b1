"""The course: scripts of `# %%` cells, and what they share.

A lesson begins with `from lessons import check`, which works wherever the lesson lies, because the
package is installed together with minialign.
"""
