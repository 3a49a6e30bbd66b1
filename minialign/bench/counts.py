"""What the work of a model costs at least: FLOPs and bytes, counted from its shape.

A multiply-add is two FLOPs.
"""

from minialign.data import Example
from minialign.model import Config


def layer_parameters(config: Config) -> int:
    """Numbers in the matrices of all layers; norms and biases are not counted."""
    attention = 2 * config.d_model * config.d_head * (config.n_head + config.n_kv_head)
    matrices = 3 if config.mlp == "swiglu" else 2
    return config.n_layer * (attention + matrices * config.d_model * config.d_mlp)


def forward_flops(config: Config, tokens: int, lengths: list[int], scored: int) -> int:
    """One forward pass: `tokens` through the layers, and `scored` hidden states through the head.

    Attention works within texts of these lengths. It is causal, so its scores are half a square,
    and so are the sums of its values.
    """
    attention = 2 * sum(n * n for n in lengths) * config.n_layer * config.n_head * config.d_head
    layers = 2 * tokens * layer_parameters(config)
    return layers + attention + 2 * scored * config.d_model * config.vocab_size


def step_flops(config: Config, examples: list[Example], forwards: int = 1) -> int:
    """One update on these examples with a method that takes so many forward passes.

    Each prompt is read once. The backward pass costs twice a forward pass.
    """
    tokens = scored = 0
    lengths = []
    for e in examples:
        tokens += len(e.prompt)
        for answer in e.answers:
            tokens += len(answer) - 1                   # its last token is predicted and never read
            scored += len(answer)
            lengths.append(len(e.prompt) + len(answer) - 1)
    return (forwards + 2) * forward_flops(config, tokens, lengths, scored)


def optimizer_bytes(config: Config, width: int, moment: int) -> int:
    """What AdamW must move if a weight has `width` bytes, and each of its two moments `moment`.

    It reads weight, gradient and moments, and writes weight and moments.
    """
    tables = 1 if config.tie else 2
    numbers = layer_parameters(config) + tables * config.vocab_size * config.d_model
    return numbers * (3 * width + 4 * moment)


def token_floor(config: Config, batch: int, context: int, width: int) -> tuple[int, int]:
    """(FLOPs, bytes) of one new token for each of `batch` rows that have `context` tokens already.

    Every matrix and every cached key and value is read once; a number has `width` bytes.
    """
    numbers = layer_parameters(config) + config.vocab_size * config.d_model
    cached = 2 * batch * context * config.n_layer * config.n_kv_head * config.d_head
    attention = 4 * batch * context * config.n_layer * config.n_head * config.d_head
    return 2 * batch * numbers + attention, width * (numbers + cached)


# What the makers of GPUs say of matmuls in bfloat16, without sparsity: TFLOP/s.
BFLOAT16_TFLOPS = {"A100": 312, "H100": 989, "H200": 989, "B200": 2250, "L40S": 362, "4090": 165}


def peak_rate(gpu: str, dtype: str) -> float | None:
    """FLOPs per second that a GPU of this name has on paper; None if we do not know."""
    for name, tflops in BFLOAT16_TFLOPS.items():
        if name in gpu and dtype == "bfloat16":
            return tflops * 1e12
    return None
