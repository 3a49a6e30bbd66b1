#!/usr/bin/env bash
# IFT as in its appendix B.1: Mistral-7B on UltraFeedback.
#
# The paper trains with RMSprop, which is AdamW without a memory of gradients (--beta1 0). That
# also saves 13 GiB. All weights learn.
#
# Differs: torch's RMSprop has no bias correction, so its update t is 1/√(1−β₂ᵗ) times as large as
# ours: 10 times at first. Released code shortens gradients longer than 10, we those longer than 1
# (--clip 10).
#
# Needs    one GPU of 80 GB; a folder Mistral-7B-v0.1 (hf download mistralai/Mistral-7B-v0.1
#          --local-dir Mistral-7B-v0.1); ultrafeedback.jsonl with rows {"prompt", "completion"}
# Leaves   ift/model, a Hugging Face folder
# Never run on a GPU by us. The code is what the tests run on the CPU.
set -euo pipefail

python -m minialign train --model Mistral-7B-v0.1 --data ultrafeedback.jsonl \
    --method ift --lam 0.2 --gamma 0.95 --lr 5e-7 --beta1 0 --beta2 0.99 \
    --epochs 3 --batch 512 --warmup 0.1 --max-len 1024 --pass-tokens 16384 \
    --dtype bfloat16 --moments bfloat16 --activation-checkpointing --device cuda --out ift
