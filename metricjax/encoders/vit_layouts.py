"""The names under which weights of vision transformers with a class token are published."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metricjax.encoders.layouts import Layout, Place, conv, linear, norm
from metricjax.encoders.vit import ViT

__all__ = ["Spelling", "positions_on", "vit"]


class Spelling(NamedTuple):
    """How a library calls the parts of a vision transformer: `{}` stands for the block, or for "weight" and "bias"."""

    title: str
    patches: str
    class_token: str
    positions: str
    norm_before: str
    norm: str
    projection: str
    block: str
    norm1: str
    queries_keys_values: tuple[str, ...]
    attended: str
    norm2: str
    inner: str
    outer: str
    scales: tuple[str, ...] = ()
    registers: str | None = None
    is_batched: bool = False  # whether tokens and positions have an axis of length 1 in front
    classifier: tuple[str, ...] = ()  # the beginning of its names
    unused: tuple[str, ...] = ()


TIMM = Spelling(  # timm/models/vision_transformer.py
    title="timm",
    patches="patch_embed.proj",
    class_token="cls_token",
    positions="pos_embed",
    norm_before="norm_pre",
    norm="norm",
    projection="head.{}",
    block="blocks.{}.",
    norm1="norm1",
    queries_keys_values=("attn.qkv.{}",),
    attended="attn.proj.{}",
    norm2="norm2",
    inner="mlp.fc1.{}",
    outer="mlp.fc2.{}",
    scales=("ls1.gamma", "ls2.gamma"),
    registers="reg_token",
    is_batched=True,
    classifier=("head.",),
    unused=("mask_token",),  # which only training needs
)
DINOV2 = TIMM._replace(title="DINOv2", registers="register_tokens")  # dinov2/models/vision_transformer.py
CLIP = Spelling(  # clip/model.py of OpenAI, src/open_clip/transformer.py
    title="CLIP",
    patches="conv1",
    class_token="class_embedding",
    positions="positional_embedding",
    norm_before="ln_pre",
    norm="ln_post",
    projection="proj",
    block="transformer.resblocks.{}.",
    norm1="ln_1",
    queries_keys_values=("attn.in_proj_{}",),
    attended="attn.out_proj.{}",
    norm2="ln_2",
    inner="mlp.c_fc.{}",
    outer="mlp.c_proj.{}",
    scales=("ls_1.gamma", "ls_2.gamma"),
)
TRANSFORMERS = Spelling(  # transformers/models/clip/modeling_clip.py
    title="transformers",
    patches="vision_model.embeddings.patch_embedding",
    class_token="vision_model.embeddings.class_embedding",
    positions="vision_model.embeddings.position_embedding.weight",
    norm_before="vision_model.pre_layrnorm",
    norm="vision_model.post_layernorm",
    projection="visual_projection.{}",
    block="vision_model.encoder.layers.{}.",
    norm1="layer_norm1",
    queries_keys_values=("self_attn.q_proj.{}", "self_attn.k_proj.{}", "self_attn.v_proj.{}"),
    attended="self_attn.out_proj.{}",
    norm2="layer_norm2",
    inner="mlp.fc1.{}",
    outer="mlp.fc2.{}",
    unused=("text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids"),
)


def vit(model: ViT) -> list[Layout]:
    spellings = [TIMM, CLIP, TRANSFORMERS] if model.registers is None else [TIMM, DINOV2]
    if any(block.scale1 is not None for block in model.blocks):
        spellings = [spelling for spelling in spellings if spelling.scales]
    return [_layout(model, spelling) for spelling in spellings]


def _layout(model: ViT, spelling: Spelling) -> Layout:
    wide = model.class_token.shape[0]
    first = (1,) if spelling.is_batched else ()
    token: tuple[int, ...] = (1, 1, wide) if spelling.is_batched else (wide,)
    found = conv(spelling.patches, model.patches)
    found += [Place(model.class_token, {spelling.class_token: token}, lambda a: a.reshape(wide))]
    positions = partial(positions_on, model.grid)
    found += [Place(model.positions, {spelling.positions: (*first, None, wide)}, positions)]
    if model.registers is not None and spelling.registers is not None:
        found += [Place(model.registers, {spelling.registers: (1, *model.registers.shape)}, lambda a: a[0])]
    if model.norm_before is not None:
        found += norm(spelling.norm_before, model.norm_before)
    for b, block in enumerate(model.blocks):
        name = spelling.block.format(b)
        found += norm(name + spelling.norm1, block.norm1)
        found += linear(block.queries_keys_values, *(name + part for part in spelling.queries_keys_values))
        found += linear(block.attended, name + spelling.attended)
        found += norm(name + spelling.norm2, block.norm2)
        found += linear(block.inner, name + spelling.inner) + linear(block.outer, name + spelling.outer)
        if block.scale1 is not None:
            scales = zip((block.scale1, block.scale2), spelling.scales, strict=True)
            found += [Place(scale, {name + key: (wide,)}) for scale, key in scales]
    found += norm(spelling.norm, model.norm)
    unused, fixed = spelling.unused, {}
    if model.projection is None:
        unused += spelling.classifier
    elif "{}" in spelling.projection:
        found += linear(model.projection, spelling.projection)
        fixed = {f"{name}bias": 0.0 for name in spelling.classifier}  # timm has CLIP's projection for a classifier
    else:
        found += [Place(model.projection.kernel, {spelling.projection: model.projection.kernel.shape})]
    return Layout(spelling.title, found, unused, fixed)


def positions_on(grid: tuple[int, int], positions: np.ndarray) -> np.ndarray:
    """Positions [1 + h · w, d] for a grid (h, w), the first for the class token, made of [(1,) n, d] of another one.

    One more than a square number are those of a square grid behind that of the class token, a square number those of
    such a grid alone (timm's models with registers have added the class token's to the token itself, so that it is 0
    here); others must be those of this grid. Another grid is interpolated by bicubic polynomials, with antialiasing, as
    timm does, and as Meta does for models with registers; for those without, Meta smooths nothing and adds 0.1 to the
    new height and width.
    """
    positions = positions.reshape(-1, positions.shape[-1])
    count, wanted = len(positions), grid[0] * grid[1]
    square = lambda n: math.isqrt(n) ** 2 == n
    has_class = count > 1 and (square(count - 1) or count == 1 + wanted)
    if count == 0 or not (has_class or square(count) or count == wanted):
        raise ValueError(f"it has {count} positions; wanted {1 + wanted}, or those of a square grid")
    of_class, patches = (positions[:1], positions[1:]) if has_class else (np.zeros_like(positions[:1]), positions)
    side = math.isqrt(len(patches))
    old = (side, side) if square(len(patches)) else grid
    if old != grid:
        on_grid = jnp.asarray(patches).reshape(*old, -1)
        patches = np.asarray(jax.image.resize(on_grid, (*grid, on_grid.shape[-1]), "cubic")).reshape(wanted, -1)
    return np.concatenate([of_class, patches])
