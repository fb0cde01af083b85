# SPDX-License-Identifier: Apache-2.0
"""The Llama of train_step.py: a checkpoint with its batch for our trainer, and the same model of plain PyTorch operations."""
import json
import os
import struct

import torch
from torch import nn
from torch.nn import functional

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER, VOCABULARY = 512, 8, 8, 4, 1408, 256
BATCH, TOKENS, LR = 8, 128, 1e-3
EPSILON, THETA = 1e-5, 10000.0


def shapes():
    """Tensors of the checkpoint by name, as Hugging Face calls them."""
    kv = HIDDEN * KV_HEADS // HEADS
    named = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    for i in range(LAYERS):
        for name, shape in {
            "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
            "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (kv, HIDDEN), "self_attn.v_proj": (kv, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER)}.items():
            named[f"model.layers.{i}.{name}.weight"] = shape
    return named


def weights():
    """The same values in every process: bf16 tensors by name."""
    random = torch.Generator().manual_seed(1)
    return {name: torch.ones(shape, dtype=torch.bfloat16) if len(shape) == 1
            else (torch.randn(shape, generator=random) * 0.02).to(torch.bfloat16) for name, shape in shapes().items()}


def batch():
    return torch.randint(0, VOCABULARY, (BATCH, TOKENS + 1), generator=torch.Generator().manual_seed(2))


def write_safetensors(path, tensors):
    """tensors: {name: (dtype, shape, bytes)}."""
    header, place = {}, 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + len(raw)]}
        place += len(raw)
    text = json.dumps(header).encode()
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text + b"".join(raw for _, _, raw in tensors.values()))


def write_model(folder):
    with open(os.path.join(folder, "config.json"), "w") as out:
        json.dump({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
                   "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "intermediate_size": INNER, "vocab_size": VOCABULARY,
                   "rms_norm_eps": EPSILON, "rope_theta": THETA, "tie_word_embeddings": False, "hidden_act": "silu",
                   "max_position_embeddings": 2048, "torch_dtype": "bfloat16"}, out)
    write_safetensors(os.path.join(folder, "model.safetensors"),
                      {name: ("BF16", t.shape, t.view(torch.int16).numpy().tobytes()) for name, t in weights().items()})
    rows = batch()
    write_safetensors(os.path.join(folder, "tokens.safetensors"), {"input_ids": ("I64", rows.shape, rows.numpy().tobytes())})
    with open(os.path.join(folder, "fsdp2.yaml"), "w") as out:
        out.write(f"model: {folder}\ndist_config:\n  name: fsdp2\nenable_activation_checkpointing: false\n"
                  f"micro_batch_size: 1\nmax_grad_norm: 1000000\n")


SIZE = HIDDEN // HEADS  # of a head


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x):
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON)).to(x.dtype)


ANGLES = torch.outer(torch.arange(TOKENS).float(), THETA ** (-torch.arange(0, SIZE, 2).float() / SIZE)).repeat(1, 2)
TURNS = {kind: (ANGLES.cos().to(kind), ANGLES.sin().to(kind)) for kind in (torch.float32, torch.bfloat16)}


def rotated(x):
    half, (cos, sin) = x.shape[-1] // 2, TURNS[x.dtype]
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.o_proj = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(HIDDEN, KV_HEADS * SIZE, bias=False) for _ in range(2))

    def forward(self, x):
        q, k, v = (p(x).unflatten(-1, (-1, SIZE)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        y = functional.scaled_dot_product_attention(rotated(q), rotated(k), v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(HIDDEN, INNER, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x):
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm, self.self_attn = Norm(), Attention()
        self.post_attention_layernorm, self.mlp = Norm(), Mlp()

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = Norm()

    def forward(self, ids):
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Llama(nn.Module):
    """Starts with the values of the checkpoint, in fp32."""

    def __init__(self):
        super().__init__()
        self.model, self.lm_head = Body(), nn.Linear(HIDDEN, VOCABULARY, bias=False)
        self.load_state_dict({name: t.float() for name, t in weights().items()})

    def forward(self, ids):
        return self.lm_head(self.model(ids))
