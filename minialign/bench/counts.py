"""What the work of a model costs at least: multiply-adds and bytes, counted from its shape."""

from minialign.model import Config


def layer_parameters(config: Config) -> int:
    """Numbers in the matrices of all layers, norms and biases not counted."""
    attention = 2 * config.d_model * config.d_head * (config.n_head + config.n_kv_head)
    return config.n_layer * (attention + (3 if config.mlp == "swiglu" else 2) * config.d_model * config.d_mlp)


def forward_flops(config: Config, tokens: int, lengths: list[int], scored: int) -> int:
    """One forward pass: `tokens` through the layers, attention within texts of these lengths, `scored` states through the head.

    A multiply-add counts as two. Causal attention is half a square, for scores and for values.
    """
    attention = 2 * sum(n * n for n in lengths) * config.n_layer * config.n_head * config.d_head
    return 2 * tokens * layer_parameters(config) + attention + 2 * scored * config.d_model * config.vocab_size


def step_flops(config: Config, method: str, batch: int, prompt: int, answer: int, answers: int) -> int:
    """One training step, every prompt read once: backward is twice forward, and IFT goes forward once more before."""
    tokens, lengths = batch * (prompt + answers * (answer - 1)), [prompt + answer - 1] * batch * answers
    return (4 if method.startswith("ift") else 3) * forward_flops(config, tokens, lengths, batch * answers * answer)


def optimizer_bytes(config: Config, width: int) -> int:
    """What AdamW must move: reads weight, gradient and both moments, writes weight and moments; `width` bytes a weight."""
    tables = (1 if config.tie else 2) * config.vocab_size * config.d_model
    return (layer_parameters(config) + tables) * (3 * width + 4 * 4)


def token_floor(config: Config, batch: int, context: int, width: int) -> tuple[int, int]:
    """(FLOPs, bytes) of one new token per row behind `context` tokens: all matrices are read once, and every cached key."""
    numbers = layer_parameters(config) + config.vocab_size * config.d_model
    cached = 2 * batch * context * config.n_layer * config.n_kv_head * config.d_head
    attention = 4 * batch * context * config.n_layer * config.n_head * config.d_head
    return 2 * batch * numbers + attention, width * (numbers + cached)
