"""Draw the pictures of the phantom set.

A picture shows a head, a chest or an abdomen as CT, MRI or X-ray would show it, in grey, with at
most one lesion. A mask beside it says which pixels are of the body and which of the lesion. Sides
are the patient's: what is on the left of the picture is "right".
"""

from __future__ import annotations

import numpy as np

from cmimtl.data.phantom_questions import LEVELS, PARTS, SIDES, Phantom

# Grey values, 0 to 1: surroundings, skin or bone around the body, soft tissue, air-filled parts.
TISSUES = {
    "CT": (0.0, 0.95, 0.45, 0.15),
    "MRI": (0.0, 0.25, 0.65, 0.4),
    "X-Ray": (0.2, 0.55, 0.4, 0.3),
}
BODIES = {"Head": (0.36, 0.44), "Chest": (0.46, 0.38), "Abdomen": (0.46, 0.34)}  # half-axes
# Radius, height and place of a lesion, as shares of the picture's side. The radius varies by less
# than half of the way to the next size.
RADII = {"small": 0.045, "medium": 0.085, "large": 0.135}
HEIGHTS = dict(zip(LEVELS, (0.32, 0.5, 0.68), strict=True))  # from the top
PLACES = dict(zip(SIDES, (0.7, 0.5, 0.3), strict=True))  # from the left of the picture
RING = 0.02  # width of the ring that sets a lesion off from tissue of its own grey
RINGS = {"bright": 0.0, "dark": 1.0, "mixed": 0.5}

# What the pixels of a mask mean; 0 is what is around the body.
ORGANS = {part: number for number, part in enumerate(PARTS, 1)}
LESION = len(PARTS) + 1


class Grid:
    """The coordinates of the pixels' middles, from 0 to 1, and shapes that are drawn on them."""

    def __init__(self, size: int) -> None:
        middles = (np.arange(size, dtype=np.float32) + 0.5) / size
        self.size = size
        self.y, self.x = middles[:, None], middles[None, :]

    def ellipse(self, x: float, y: float, width: float, height: float) -> np.ndarray:
        """The share of each pixel that lies in an ellipse with these half-axes, (size, size)."""
        distance = np.hypot((self.x - x) / width, (self.y - y) / height)
        edge = (1 - distance) * min(width, height) * self.size
        return np.clip(edge + 0.5, 0, 1)


def draw_picture(p: Phantom, grid: Grid, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a phantom: its picture, grey, and its mask, both (size, size) uint8.

    The mask has ORGANS at the body and LESION at the lesion, wherever half of a pixel is covered.
    """
    around, rim, soft, air = TISSUES[p.modality]

    def near(value: float, spread: float) -> float:
        return float(value + rng.uniform(-spread, spread))

    picture = np.full((grid.size, grid.size), around, np.float32)

    def paint(shape: np.ndarray, grey: float) -> None:
        picture[:] += shape * (grey - picture)

    x, y = near(0.5, 0.02), near(0.5, 0.02)
    width, height = (near(half_axis, 0.02) for half_axis in BODIES[p.part])
    body = grid.ellipse(x, y, width, height)
    mask = np.where(body >= 0.5, ORGANS[p.part], 0).astype(np.uint8)
    paint(body, rim)
    paint(grid.ellipse(x, y, width - 0.04, height - 0.04), soft)
    if p.part == "Head":
        for sign in (-1, 1):  # ventricles
            paint(grid.ellipse(x + sign * 0.05, y, 0.03, 0.1), air)
    elif p.part == "Chest":
        for sign in (-1, 1):  # lungs
            paint(grid.ellipse(x + sign * 0.21, y, 0.14, height - 0.1), air)
        paint(grid.ellipse(x, y + height - 0.08, 0.05, 0.05), rim)  # spine
    else:
        paint(grid.ellipse(x - 0.15, y - 0.05, 0.24, 0.18), (soft + rim) / 2)  # liver
        paint(grid.ellipse(x, y + height - 0.1, 0.06, 0.06), rim)
    if p.finding is not None:
        size, shade, level, side = p.finding
        radius = near(RADII[size], 0.006)
        at_x, at_y = near(PLACES[side], 0.03), near(HEIGHTS[level], 0.02)
        if p.diameter is None:
            paint(grid.ellipse(at_x, at_y, radius + RING, radius + RING), RINGS[shade])
        else:
            radius = p.diameter / 2
        disc = grid.ellipse(at_x, at_y, radius, radius)
        mask[disc >= 0.5] = LESION
        disc *= p.contrast
        if shade != "dark":
            paint(disc if shade == "bright" else disc * (grid.y < at_y), 1.0)
        if shade != "bright":
            paint(disc if shade == "dark" else disc * (grid.y >= at_y), 0.0)
    picture *= near(1.0, 0.08)
    picture += rng.normal(0, 0.02, picture.shape).astype(np.float32)
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8), mask
