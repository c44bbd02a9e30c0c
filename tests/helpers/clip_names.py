"""Weights of CLIP's image tower in timm's names, arrays or tensors, in those of OpenAI and of transformers."""

import re
from collections.abc import Mapping
from typing import Any

OPENAI = {
    "patch_embed.proj": "conv1",
    "cls_token": "class_embedding",
    "pos_embed": "positional_embedding",
    "norm_pre": "ln_pre",
    r"^norm\.": "ln_post.",
    r"blocks\.": "transformer.resblocks.",
    "norm([12])": r"ln_\1",
    r"attn\.qkv\.": "attn.in_proj_",
    r"attn\.proj": "attn.out_proj",
    r"mlp\.fc1": "mlp.c_fc",
    r"mlp\.fc2": "mlp.c_proj",
    r"head\.weight": "proj",
}
TRANSFORMERS = {
    r"patch_embed\.proj": "embeddings.patch_embedding",
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding.weight",
    "norm_pre": "pre_layrnorm",
    r"^norm\.": "post_layernorm.",
    r"blocks\.": "encoder.layers.",
    "norm([12])": r"layer_norm\1",
    r"attn\.proj": "self_attn.out_proj",
}


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        name = re.sub(old, new, name)
    return name


def openai(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Behind "visual.", with a part of a text tower beside them."""
    found = {}
    for name, a in weights.items():
        if name in ("cls_token", "pos_embed"):
            a = a[0, 0] if name == "cls_token" else a[0]
        elif name == "head.weight":
            a = a.T  # which is not contiguous in a file
        if name != "head.bias":
            found[f"visual.{_renamed(name, OPENAI)}"] = a
    text = {name.removeprefix("visual."): a for name, a in found.items() if "resblocks" in name or "positional" in name}
    text |= {"transformer.resblocks.99.ln_1.weight": found["visual.ln_pre.weight"]}
    return found | text


def transformers(weights: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, a in weights.items():
        if name in ("cls_token", "pos_embed"):
            a = a[0, 0] if name == "cls_token" else a[0]
        if "attn.qkv." in name:
            third = len(a) // 3
            for i, part in enumerate("qkv"):
                new = name.replace("attn.qkv.", f"self_attn.{part}_proj.")
                found[f"vision_model.{_renamed(new, TRANSFORMERS)}"] = a[i * third : (i + 1) * third]
        elif name == "head.weight":
            found["visual_projection.weight"] = a
        elif name != "head.bias":
            found[f"vision_model.{_renamed(name, TRANSFORMERS)}"] = a
    ids, token = {"vision_model.embeddings.position_ids": weights["pos_embed"]}, {"logit_scale": weights["cls_token"]}
    return found | ids | token | {"text_model.final_layer_norm.bias": weights["norm.bias"]}
