"""Procedural portraits: the pictures that the tiny checkpoint is trained on, and the portrait maker's."""

from model.training.render.compose import MOTION, compiled, concat, neutral, render, render_frames, take
from model.training.render.heroes import heroes
from model.training.render.identity import sample_identity

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
