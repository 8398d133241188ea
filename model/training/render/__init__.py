"""Procedural portraits: the pictures that the tiny checkpoint is trained on."""

from model.training.render.compose import (
    MOTION,
    compiled,
    concat,
    heroes,
    neutral,
    render,
    render_frames,
    sample_identity,
    take,
)

__all__ = [
    "MOTION",
    "compiled",
    "concat",
    "heroes",
    "neutral",
    "render",
    "render_frames",
    "sample_identity",
    "take",
]
