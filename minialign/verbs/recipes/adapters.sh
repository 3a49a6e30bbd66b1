#!/usr/bin/env bash
# ASFT on a card of 24 GB: low-rank adapters learn instead of all weights.
#
# Adapters take a learning rate about a hundred times that of the weights. The same flags, namely
# --lora-rank 16 --lr 1e-4 --pass-tokens 4096, turn the other recipes into ones for such a card.
#
# Needs    one GPU of 24 GB; a folder Meta-Llama-3-8B-Instruct (hf download
#          meta-llama/Meta-Llama-3-8B-Instruct --local-dir Meta-Llama-3-8B-Instruct); pairs.jsonl
#          with rows {"prompt", "chosen", "rejected"}
# Leaves   adapters/model, the merged model, and adapters/adapter, the adapters in PEFT's format
# Never run on a GPU by us. The code is what the tests run on the CPU.
set -euo pipefail

python -m minialign train --model Meta-Llama-3-8B-Instruct --data pairs.jsonl \
    --method asft --lam 0.1 --lora-rank 16 --lr 1e-4 --batch 64 --max-len 2048 \
    --pass-tokens 4096 --dtype bfloat16 --activation-checkpointing --device cuda --out adapters
