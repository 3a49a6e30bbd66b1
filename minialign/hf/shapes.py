"""The shapes of well-known models, to plan and to measure with before anything is downloaded.

Numbers only, no weights.
"""

from minialign.model import Config

# How Llama 3.1 and 3.2 stretched the context of Llama 3.
LLAMA3_1_ROPE = {"rope_theta": 500_000.0, "rope_scaling": ("llama3", 8.0, 1.0, 4.0, 8192)}
LLAMA3_2_ROPE = {"rope_theta": 500_000.0, "rope_scaling": ("llama3", 32.0, 1.0, 4.0, 8192)}

PRESETS = {
    "llama2-7b": Config(
        vocab_size=32_000, n_layer=32, n_head=32, d_model=4096, d_mlp=11_008, max_len=4096),
    "llama3-8b": Config(
        vocab_size=128_256, n_layer=32, n_head=32, n_kv_head=8, d_model=4096, d_mlp=14_336,
        max_len=8192, rope_theta=500_000.0),
    "llama3.1-8b": Config(
        vocab_size=128_256, n_layer=32, n_head=32, n_kv_head=8, d_model=4096, d_mlp=14_336,
        max_len=131_072, **LLAMA3_1_ROPE),
    "llama3.2-1b": Config(
        vocab_size=128_256, n_layer=16, n_head=32, n_kv_head=8, d_model=2048, d_mlp=8192,
        max_len=131_072, tie=True, **LLAMA3_2_ROPE),
    "llama3.2-3b": Config(
        vocab_size=128_256, n_layer=28, n_head=24, n_kv_head=8, d_model=3072, d_mlp=8192,
        max_len=131_072, tie=True, **LLAMA3_2_ROPE),
    "mistral-7b": Config(                               # version 0.1
        vocab_size=32_000, n_layer=32, n_head=32, n_kv_head=8, d_model=4096, d_mlp=14_336,
        max_len=32_768, window=4096),
    "mistral-7b-v0.3": Config(
        vocab_size=32_768, n_layer=32, n_head=32, n_kv_head=8, d_model=4096, d_mlp=14_336,
        max_len=32_768, rope_theta=1_000_000.0),
    "qwen2.5-0.5b": Config(
        vocab_size=151_936, n_layer=24, n_head=14, n_kv_head=2, d_model=896, d_mlp=4864,
        max_len=32_768, rope_theta=1_000_000.0, norm_eps=1e-6, qkv_bias=True, tie=True),
    "qwen2.5-7b": Config(
        vocab_size=152_064, n_layer=28, n_head=28, n_kv_head=4, d_model=3584, d_mlp=18_944,
        max_len=131_072, rope_theta=1_000_000.0, norm_eps=1e-6, qkv_bias=True),
    "gpt2": Config(
        vocab_size=50_257, n_layer=12, n_head=12, d_model=768, d_mlp=3072, max_len=1024,
        norm="layer", pos="learned", mlp="gelu", bias=True, tie=True),
    # Two Llamas small enough to be measured on two CPU cores, one with a small vocabulary and one
    # with a large one. Nobody published them.
    "cpu-32k": Config(
        vocab_size=32_000, n_layer=4, n_head=8, n_kv_head=4, d_model=256, d_mlp=704, max_len=2048),
    "cpu-128k": Config(
        vocab_size=128_256, n_layer=8, n_head=8, n_kv_head=4, d_model=512, d_mlp=1408,
        max_len=2048),
}
