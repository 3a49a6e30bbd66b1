"""LoRA (Hu et al. 2021, arXiv 2106.09685): a low-rank difference, trained beside frozen weights.

A layer computes with W + (α/r) B A, where only A and B learn; afterwards the difference is kept
beside the weights or merged into them. The adapters are float32 whatever the model's dtype, so
tiny learning rates work without rounding tricks. Files are in PEFT's format. No other kind of
adapter, no dropout, no adapters on GPT-2, whose q, k and v PEFT knows only as one layer.
"""

import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from minialign.files import write_json, write_tensors
from minialign.hf.jsonfiles import read_json
from minialign.hf.places import shipped_folder
from minialign.hf.weights import check_tensors
from minialign.model import Transformer

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PREFIX = "base_model.model."                        # what PEFT puts before every name
# What PEFT can add to LoRA and we do not compute: keys of adapter_config.json.
EXTENSIONS = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save",
              "layers_to_transform", "lora_bias", "fan_in_fan_out")
# Starts of A and B that leave the base model as it was; others (PiSSA, LoftQ, …) change it too.
STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


class LowRank(nn.Module):
    """A linear layer with an adapter: y = x Wᵀ + b + (α/r) x Aᵀ Bᵀ.

    It holds the weight and the bias of the layer it replaces, under the same names. Only A (r, in)
    and B (out, r) learn. B begins at 0, so that at first the adapter changes nothing.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        new = {"dtype": torch.float32, "device": linear.weight.device}
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features, **new))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, **new))

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) → (…, out), in the dtype of x."""
        inner = self.scale * F.linear(x, self.lora_A.to(x.dtype))       # (…, r)
        added = F.linear(inner, self.lora_B.to(x.dtype))                # (…, out)
        return F.linear(x, self.weight, self.bias) + added

    def difference(self) -> Tensor:
        """(α/r) B A, (out, in) float32: what the adapter adds to the weight."""
        return self.scale * (self.lora_B @ self.lora_A)


def add_adapters(
    model: Transformer, rank: int, alpha: float, targets: tuple[str, ...] = TARGETS, seed: int = 0
) -> None:
    """Freezes the model and puts an adapter beside every linear layer that is named in `targets`.

    It still computes what it did before. Raises ValueError for a target that no layer has, for a
    rank or an alpha that no adapter can have, and for GPT-2.
    """
    if model.config.pos == "learned":
        raise ValueError("LoRA on a GPT-2 folder cannot be saved as PEFT does it; "
                         "train all of it, it is small")
    modules = model.model.named_modules()
    names = {name.rpartition(".")[2] for name, module in modules if isinstance(module, nn.Linear)}
    unknown = sorted(set(targets) - names)
    if unknown:
        known = ", ".join(name for name in TARGETS if name in names)
        raise ValueError(f"no layer is called {unknown[0]!r}; this model has {known}")
    if not (1 <= rank <= model.config.d_model and alpha > 0 and targets):
        raise ValueError(
            f"LoRA of rank {rank} and alpha {alpha} on {list(targets)}: the rank lies between 1 "
            f"and the width {model.config.d_model}, alpha above 0, and there is at least one "
            "target")

    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.model["layers"]:
        for block in (layer.self_attn, layer.mlp):
            for name in targets:
                if hasattr(block, name):
                    adapted = LowRank(getattr(block, name), rank, alpha)
                    start_adapter(adapted, generator)
                    setattr(block, name, adapted)


def start_adapter(layer: LowRank, generator: torch.Generator) -> None:
    """PEFT's start of A: uniform within ±1/√in. A model on the meta device has nothing to fill."""
    if layer.lora_A.device.type == "meta":
        return
    start = torch.rand(layer.lora_A.shape, generator=generator)         # (r, in), on the CPU
    layer.lora_A.data.copy_((2 * start - 1) / math.sqrt(layer.in_features))


def adapted_layers(model: Transformer) -> dict[str, LowRank]:
    """{name: layer} of every layer with an adapter."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LowRank)}


def adapter_parameters(model: Transformer) -> dict[str, nn.Parameter]:
    """{PEFT's name, less its prefix: parameter} of every A and B."""
    parameters = {}
    for name, layer in adapted_layers(model).items():
        parameters[f"{name}.lora_A.weight"] = layer.lora_A
        parameters[f"{name}.lora_B.weight"] = layer.lora_B
    return parameters


@torch.no_grad()
def merge(model: Transformer) -> None:
    """Adds every adapter to its weight, rounded once, and takes it away.

    What is left is a plain model, all of which would learn.
    """
    for name, layer in adapted_layers(model).items():
        merged = layer.weight.float() + layer.difference()              # (out, in) float32
        layer.weight.data = merged.to(layer.weight.dtype)
        bias = layer.bias is not None
        plain = nn.Linear(layer.in_features, layer.out_features, bias, device="meta")
        plain.weight, plain.bias = layer.weight, layer.bias
        model.set_submodule(name, plain)
    model.requires_grad_(True)


def save_adapters(folder: str | Path, model: Transformer, base: str) -> None:
    """Writes the adapters alone, as a folder that PEFT opens on top of the model `base`.

    PEFT would look on the hub for a name that only this package knows, so of a shipped model it
    gets the folder.
    """
    base = str(shipped_folder(base) or base)
    layers = adapted_layers(model)
    names = {name.rpartition(".")[2] for name in layers}
    first = next(iter(layers.values()))
    rank = first.lora_A.shape[0]
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
        "r": rank, "lora_alpha": round(first.scale * rank, 6), "target_modules": sorted(names),
        "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
    }
    tensors = {PREFIX + name: parameter for name, parameter in adapter_parameters(model).items()}
    write_tensors(Path(folder) / "adapter_model.safetensors", tensors, {"format": "pt"})
    write_json(Path(folder) / "adapter_config.json", config, indent=2)


def load_adapters(folder: str | Path, model: Transformer) -> None:
    """Puts the adapters of a PEFT folder beside the layers of the model they were trained on.

    Raises FileNotFoundError for a file that is missing, and ValueError if the folder is damaged,
    holds anything but plain LoRA, or holds the adapters of another model.
    """
    config_file = Path(folder) / "adapter_config.json"
    tensor_file = Path(folder) / "adapter_model.safetensors"
    for file in (config_file, tensor_file):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; an adapter is a folder with "
                                    "adapter_config.json and adapter_model.safetensors")
    config = read_json(config_file)
    odd = [key for key in EXTENSIONS if config.get(key)]
    if config.get("bias", "none") != "none":
        odd.append("bias")
    if config.get("peft_type", "LORA") != "LORA":
        odd.append(f"peft_type {config['peft_type']}")
    if config.get("init_lora_weights") not in STARTS:
        odd.append(f"init_lora_weights {config['init_lora_weights']!r}")
    if odd:
        raise ValueError(f"{config_file}: {odd[0]} is not supported; only plain LoRA is")

    # The layers are those the tensors are named after: …self_attn.q_proj.lora_A.weight.
    try:
        stored = load_file(tensor_file)
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items()}
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except Exception as error:
        # A header that is damaged, keys that are not there or no numbers.
        raise ValueError(f"{folder} is no LoRA adapter that can be read ({error}); "
                         "fetch it again") from None
    other = [name for name in tensors if not re.fullmatch(r".+\..+\.lora_[AB]\.weight", name)]
    if other:
        raise ValueError(f"{tensor_file}: {other[0]} is not supported; only plain LoRA is")
    targets = {name.split(".")[-3] for name in tensors}
    add_adapters(model, rank, alpha, tuple(sorted(targets)))

    wanted = adapter_parameters(model)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor.float()          # PEFT also writes adapters in half precision
    try:
        check_tensors(tensors, wanted)
    except ValueError as error:
        raise ValueError(f"{folder} does not fit this model: {error}; "
                         "give the model the adapter was trained on") from None
    for name, parameter in wanted.items():
        parameter.data.copy_(tensors[name])
