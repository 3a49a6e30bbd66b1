#!/usr/bin/env bash
# What a GPU will have to do: first counted, then measured on a model with random weights.
#
# The first command counts the memory of a training step and needs no GPU. The second one times
# the vocabulary head, a training step and generation with Llama-3-8B's shape.
#
# Needs    for the second command one GPU of 80 GB
# Leaves   nothing: both print a table
# Never run on a GPU by us.
set -euo pipefail

python -m minialign bench --preset llama3-8b --method asft --memory-only --batch 1 --len 2048 \
    --prompt-len 1024

python -m minialign bench head step generate --preset llama3-8b --dtype bfloat16 --device cuda \
    --lean --method asft,dft2 --batch 1 --len 1024 --prompt-len 256
