"""LoRA (Hu et al. 2021, arXiv 2106.09685): train a low-rank difference beside frozen weights, W + (α/r) B A; keep it or merge it.

The adapters are float32 whatever the model's dtype, so tiny learning rates work without rounding tricks. Files are in PEFT's
format. No other kind of adapter, no dropout, no adapters on GPT-2, whose q, k and v PEFT knows only as one layer.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from minialign.files import write_tensors, write_text
from minialign.model import Transformer

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PREFIX = "base_model.model."                        # what PEFT puts before every name


class LowRank(nn.Linear):
    """A linear layer with an adapter: y = x Wᵀ + b + (α/r) x Aᵀ Bᵀ. Only A (r, in) and B (out, r) learn; B begins at 0."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias, self.scale = linear.weight, linear.bias, alpha / rank
        new = {"dtype": torch.float32, "device": linear.weight.device}
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features, **new))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, **new))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.linear(x, self.lora_A.to(x.dtype))                    # (…, r)
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(inner, self.lora_B.to(x.dtype))

    def difference(self) -> Tensor:
        """(α/r) B A, (out, in) float32: what the adapter adds to the weight."""
        return self.scale * (self.lora_B @ self.lora_A)


def add_adapters(model: Transformer, rank: int, alpha: float, targets: tuple[str, ...] = TARGETS, seed: int = 0) -> None:
    """Freeze the model and put an adapter beside every linear layer named in `targets`. It still computes what it did before.

    ValueError for a target that no layer has, a rank no adapter can have, and for GPT-2.
    """
    if model.config.pos == "learned":
        raise ValueError("LoRA on a GPT-2 folder cannot be saved as PEFT does it; train all of it, it is small")
    names = {name.rpartition(".")[2] for name, module in model.model.named_modules() if isinstance(module, nn.Linear)}
    if unknown := sorted(set(targets) - names):
        raise ValueError(f"no layer is called {unknown[0]!r}; this model has {', '.join(t for t in TARGETS if t in names)}")
    if not (1 <= rank <= model.config.d_model and alpha > 0 and targets):
        raise ValueError(f"LoRA of rank {rank} and alpha {alpha} on {list(targets)}: the rank lies between 1 and the width "
                         f"{model.config.d_model}, alpha above 0, and there is at least one target")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.model["layers"]:
        for block in layer.self_attn, layer.mlp:
            for name in targets:
                if hasattr(block, name):
                    adapted = LowRank(getattr(block, name), rank, alpha)
                    if adapted.lora_A.device.type != "meta":
                        start = torch.rand(adapted.lora_A.shape, generator=generator)       # PEFT's start: uniform ±1/√in
                        adapted.lora_A.data.copy_((2 * start - 1) / math.sqrt(adapted.in_features))
                    setattr(block, name, adapted)


def adapted_layers(model: Transformer) -> dict[str, LowRank]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRank)}


def adapter_parameters(model: Transformer) -> dict[str, nn.Parameter]:
    """{PEFT's name, less its prefix: parameter}"""
    return {f"{name}.lora_{x}.weight": getattr(layer, f"lora_{x}") for name, layer in adapted_layers(model).items() for x in "AB"}


@torch.no_grad()
def merge(model: Transformer) -> None:
    """Add every adapter to its weight, rounded once, and take it away: a plain model again, all of which would learn."""
    for name, layer in adapted_layers(model).items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        plain.weight, plain.bias = layer.weight, layer.bias
        plain.weight.data = (layer.weight.float() + layer.difference()).to(layer.weight.dtype)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, plain)
    model.requires_grad_(True)


def save_adapters(folder: str | Path, model: Transformer, base: str) -> None:
    """The adapters alone, as a folder that PEFT's from_pretrained opens on top of the model `base`."""
    layers = adapted_layers(model)
    rank, scale = next((layer.lora_A.shape[0], layer.scale) for layer in layers.values())
    tensors = {PREFIX + name: parameter for name, parameter in adapter_parameters(model).items()}
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank,
              "lora_alpha": round(scale * rank, 6), "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
              "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "inference_mode": True}
    write_tensors(Path(folder) / "adapter_model.safetensors", tensors, {"format": "pt"})
    write_text(Path(folder) / "adapter_config.json", json.dumps(config, indent=2) + "\n")


def load_adapters(folder: str | Path, model: Transformer) -> None:
    """Put the adapters of a PEFT folder beside the layers of `model`, the model they were trained on.

    ValueError if the folder holds anything but plain LoRA, or adapters of another model.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = {name.removeprefix(PREFIX): x for name, x in load_file(folder / "adapter_model.safetensors").items()}
        odd = [key for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(key)]
        rank, alpha, targets = config["r"], config["lora_alpha"], tuple(sorted({name.split(".")[-3] for name in tensors}))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error.filename} is missing; an adapter is a folder with adapter_config.json and "
                                "adapter_model.safetensors") from None
    except Exception as error:                                          # torn JSON, a damaged header, keys that are not there
        raise ValueError(f"{folder} is no LoRA adapter that can be read ({error}); fetch it again") from None
    if odd or config.get("bias", "none") != "none":
        raise ValueError(f"{folder / 'adapter_config.json'}: {(odd or ['bias'])[0]} is not supported; only plain LoRA is")
    add_adapters(model, rank, alpha, targets)
    wanted = adapter_parameters(model)
    if odd := sorted(wanted.keys() ^ tensors.keys()) or [name for name in wanted if wanted[name].shape != tensors[name].shape]:
        raise ValueError(f"{folder}: {odd[0]} does not fit this model; give the model the adapter was trained on")
    for name, parameter in wanted.items():
        parameter.data.copy_(tensors[name])
