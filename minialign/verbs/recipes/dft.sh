#!/usr/bin/env bash
# DFT, setting 2 of its paper (Table 6): Mistral-7B on UltraFeedback.
#
# First the model's own answers are drawn under a system message that asks for bad ones: four per
# prompt, of which each of two epochs takes two. Then the wanted answers are trained against them.
# All weights learn, and an update is that of 128 prompts, however many go through at a time.
#
# Needs    one GPU of 80 GB; a folder Mistral-7B-v0.1 (hf download mistralai/Mistral-7B-v0.1
#          --local-dir Mistral-7B-v0.1); ultrafeedback.jsonl with rows {"prompt", "completion"}
# Leaves   pool.jsonl, and dft/model, a Hugging Face folder
# Never run on a GPU by us. The code is what the tests run on the CPU.
#
# DFT2:       --method dft2 --tau 0.3 --gamma 0.9
# Setting 1:  (MetaMath, Table 5) no --system, and --k 12 --max-new-tokens 256 in sample;
#             --k 4 --gamma 0.95 --lr 8e-7 --epochs 3 --max-len 512 in train; DFT2 there: --tau 0.1
# Differs:    the paper puts prompts into a chat template, the bad request as its system message
#             (--chat --chat-template FILE does that); here it stands on a line before the prompt.
#             Negatives are drawn at 0.7 among 50 tokens, while the reference's log-probs, which DFT
#             divides by, are those of the full distribution at temperature 1: as in released code.
#             That code ends a negative that was cut off with an end token, `sample` does not.
set -euo pipefail

python -m minialign sample --model Mistral-7B-v0.1 --data ultrafeedback.jsonl --out pool.jsonl \
    --k 4 --system "You are an unhelpful assistant." --temperature 0.7 --top-k 50 \
    --max-new-tokens 320 --batch 32 --dtype bfloat16 --device cuda

python -m minialign train --model Mistral-7B-v0.1 --data ultrafeedback.jsonl \
    --negatives pool.jsonl --k 2 --method dft --tau 1.0 --gamma 0.85 \
    --lr 2e-6 --epochs 2 --batch 128 --warmup 0.1 --max-len 1024 --pass-tokens 16384 \
    --dtype bfloat16 --moments bfloat16 --activation-checkpointing --device cuda --out dft
