"""Names and shapes of the LDM layout beside diffusers': the table both directions are made from."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

MID_ATTENTION = ("encoder.mid.attn_1", "decoder.mid.attn_1")
_ATTENTION_NAMES = {"group_norm": "norm", "query": "q", "to_q": "q", "key": "k", "to_k": "k", "value": "v",
                    "to_v": "v", "proj_attn": "proj_out", "to_out.0": "proj_out", "to_out": "proj_out"}  # fmt: skip
_PROJECTIONS = ("q", "k", "v", "proj_out")

_ATTENTION = re.compile(rf"(attn_1|attn\.\d+)\.({'|'.join(map(re.escape, _ATTENTION_NAMES))})\.")
_PROJECTION = re.compile(rf"(attn_1|attn\.\d+)\.({'|'.join(_PROJECTIONS)})\.weight$")
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_ATTENTION = re.compile(rf"(attentions\.\d+)\.({'|'.join(_OLD_NAMES)})\.")
_PARTS = ((".resnets.", ".block."), (".attentions.", ".attn."), (".downsamplers.0.", ".downsample."),
          (".upsamplers.0.", ".upsample."), (".conv_norm_out.", ".norm_out."), (".conv_shortcut.", ".nin_shortcut."),
          (".group_norm.", ".norm."), (".to_q.", ".q."), (".to_k.", ".k."), (".to_v.", ".v."),
          (".to_out.0.", ".proj_out."))  # fmt: skip


def ldm_name(name: str, *, num_levels: int) -> str:
    """LDM's name of a tensor of diffusers. LDM counts the decoder's levels from the output side."""
    name = re.sub(r"\bdown_blocks\.(\d+)", r"down.\1", name)
    name = re.sub(r"\bup_blocks\.(\d+)", lambda found: f"up.{num_levels - 1 - int(found[1])}", name)
    name = re.sub(r"\bmid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0.", "mid.attn_1.")
    for theirs, ldm in _PARTS:
        name = name.replace(theirs, ldm)
    return name


def ldm_shape(name: str, shape: torch.Size) -> torch.Size:
    """Shape of a tensor in the LDM layout: that of diffusers, but for attention's projections."""
    return torch.Size([*shape, 1, 1]) if _PROJECTION.search(name) else shape


def canonical_names(ldm_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give attention LDM's own names, where a converter left diffusers' old or new ones."""

    def canonical(name: str) -> str:
        renamed = _ATTENTION.sub(lambda found: f"{found[1]}.{_ATTENTION_NAMES[found[2]]}.", name)
        return name if renamed in ldm_state else renamed

    return {canonical(name): tensor for name, tensor in ldm_state.items()}


def modern_name(name: str) -> str:
    """Give diffusers' attention its new names (`to_q`), where a folder has the old ones (`query`)."""
    return _OLD_ATTENTION.sub(lambda found: f"{found[1]}.{_OLD_NAMES[found[2]]}.", name)


def fit_shapes(state: Mapping[str, Tensor], *, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Check names and shapes, and drop or add trailing ones of shapes, which converters differ in."""
    missing = [name for name in shapes if name not in state]
    extra = [name for name in state if name not in shapes]
    wrong = [
        f"{name} is {list(state[name].shape)}, not {list(shape)}"
        for name, shape in shapes.items()
        if name in state and _trimmed(state[name].shape) != _trimmed(shape)
    ]
    faults = {"missing": missing, "extra": extra, "wrong shape": wrong}
    if any(faults.values()):
        raise ValueError("; ".join(f"{fault}: {listed(names)}" for fault, names in faults.items() if names))
    return {name: state[name].reshape(shape) for name, shape in shapes.items()}


def _trimmed(shape: torch.Size) -> list[int]:
    sizes = list(shape)
    while sizes and sizes[-1] == 1:
        sizes.pop()
    return sizes


def listed(names: list[str], *, most: int = 12) -> str:
    """Name the first ones and count the rest, for an error message of one line."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def inert_attention(block: str, *, like: Tensor) -> dict[str, Tensor]:
    """Attention that adds exactly nothing: the residual branch ends in zeros."""
    channels = like.shape[0]
    state = {f"{block}.norm.weight": torch.ones_like(like), f"{block}.norm.bias": torch.zeros_like(like)}
    for projection in _PROJECTIONS:
        state[f"{block}.{projection}.weight"] = like.new_zeros(channels, channels, 1, 1)
        state[f"{block}.{projection}.bias"] = torch.zeros_like(like)
    return state


def has_inert_attention(ldm_state: Mapping[str, Tensor]) -> bool:
    """Whether the middle attention is, bit by bit, what `ldm_state_dict` writes for a model without one."""
    like = ldm_state.get("encoder.mid.block_1.norm1.weight")
    if like is None:
        return False
    found = {name: tensor for name, tensor in ldm_state.items() if name.startswith(MID_ATTENTION)}
    inert = inert_attention(MID_ATTENTION[0], like=like) | inert_attention(MID_ATTENTION[1], like=like)
    return found.keys() == inert.keys() and all(
        found[name].numel() == tensor.numel() and torch.equal(found[name].reshape(tensor.shape), tensor)
        for name, tensor in inert.items()
    )
