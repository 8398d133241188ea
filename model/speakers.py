"""Several speakers in one picture: whose sound moves which part of it.

Every speaker's sound is heard by every token; what it changes is weighted by that speaker's mask and summed. Masks
drawn around faces are brought to the token grid as the published program does: where faces overlap the later one wins,
and each is widened by a tenth of its size. A speaker is heard everywhere but near the others' faces, so the background
hears all. Without masks the picture is cut into upright strips, and every token hears exactly one.

Letters: A speakers, F latent frames.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.errors import ModelError
from model.geometry import Geometry
from model.interface import MOST_SPEAKERS

Fit = Callable[[np.ndarray, int, int], np.ndarray]
"""How a portrait is brought to a width and height; masks go the same way."""


def speaker_weights(speakers: int, masks: np.ndarray | None, fit: Fit, geometry: Geometry) -> Tensor | None:
    """Weight of every speaker's sound for every token of a block.

    Args:
        speakers: A.
        masks: [A, height, width] bool on the portrait's pixels, or None for strips.
        fit: as for the portrait.
        geometry: of the stream.

    Returns:
        [1, A, F, rows, columns] float32; None for one speaker, who is heard everywhere.

    Raises:
        ModelError: too many speakers, or masks that do not fit them or cover nothing.
    """
    if not 1 <= speakers <= MOST_SPEAKERS:
        raise ModelError(f"there are {speakers} speakers; a picture has 1 to {MOST_SPEAKERS}")
    if masks is not None and (masks.ndim != 3 or len(masks) != speakers):
        raise ModelError(f"the masks are {list(masks.shape)}; send one for each of {speakers} speakers")
    if speakers == 1:
        return None
    rows, columns = geometry.grid
    if masks is None:
        if columns < speakers:
            raise ModelError(f"{speakers} speakers do not fit into {geometry.width} pixels; make the picture wider")
        owner = torch.arange(columns) * speakers // columns
        weights = (owner == torch.arange(speakers)[:, None])[:, None].expand(-1, rows, -1).float()
    else:
        weights = _around_faces(_faces(masks, fit, geometry))
    return weights[None, :, None].expand(-1, -1, geometry.latents_per_block, -1, -1)


def _faces(masks: np.ndarray, fit: Fit, geometry: Geometry) -> Tensor:
    """Masks on the token grid, [A, rows, columns] bool, no token in two of them."""
    fitted = [fit(np.repeat(np.uint8(255) * mask[..., None].astype(np.uint8), 3, 2), geometry.width, geometry.height)
              for mask in masks]  # fmt: skip
    pixels = torch.from_numpy(np.stack(fitted)[..., 0]).float()[:, None] / 255
    faces = F.interpolate(pixels, size=geometry.grid, mode="bilinear", align_corners=False)[:, 0] > 0.5
    for a in range(len(faces)):
        faces[a] &= ~faces[a + 1 :].any(0)
        if not faces[a].any():
            raise ModelError(
                f"the mask of speaker {a + 1} covers nothing of the picture that the others leave; draw it larger"
            )
    return faces


def _around_faces(faces: Tensor) -> Tensor:
    """1 wherever no other speaker's widened face is, [A, rows, columns] float32."""
    widened = torch.stack([_widened(face) for face in faces])
    others = [torch.cat([widened[:a], widened[a + 1 :]]).any(0) for a in range(len(faces))]
    return (~torch.stack(others)).float()


def _widened(face: Tensor) -> Tensor:
    where = face.nonzero()
    box = where.amax(0) - where.amin(0) + 1
    radius = max(1, int(0.1 * int(box.max()) + 0.9999))
    return F.max_pool2d(face[None, None].float(), 2 * radius + 1, 1, radius)[0, 0] > 0
