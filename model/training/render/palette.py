"""Colours and named choices, hand-picked so that their combinations flatter. Colours are sRGB, 0..1."""

from __future__ import annotations

SKIN = {
    "porcelain": (0.985, 0.865, 0.790),
    "rose": (0.965, 0.805, 0.710),
    "sand": (0.945, 0.760, 0.635),
    "honey": (0.890, 0.690, 0.545),
    "caramel": (0.805, 0.590, 0.445),
    "chestnut": (0.690, 0.475, 0.345),
    "umber": (0.555, 0.365, 0.265),
    "espresso": (0.430, 0.285, 0.215),
}
HAIR_COLOR = {
    "black": (0.125, 0.110, 0.125),
    "espresso": (0.205, 0.145, 0.125),
    "brown": (0.330, 0.215, 0.150),
    "chestnut": (0.470, 0.285, 0.175),
    "honey": (0.640, 0.445, 0.255),
    "blond": (0.850, 0.690, 0.420),
    "ginger": (0.690, 0.335, 0.165),
    "auburn": (0.450, 0.175, 0.120),
    "silver": (0.660, 0.660, 0.690),
    "white": (0.880, 0.875, 0.865),
    "teal": (0.210, 0.430, 0.500),
    "plum": (0.400, 0.235, 0.410),
}
# How often each hair colour goes with each skin: rows as in SKIN, columns as in HAIR_COLOR.
HAIR_FOR_SKIN = (
    (4, 3, 5, 5, 5, 6, 6, 4, 2, 2, 1, 1),
    (5, 4, 6, 6, 5, 5, 4, 3, 2, 2, 1, 1),
    (7, 6, 7, 6, 4, 3, 2, 2, 2, 2, 1, 1),
    (9, 8, 7, 4, 3, 1, 1, 2, 2, 1, 1, 1),
    (10, 9, 6, 3, 1, 0, 0, 1, 2, 1, 0, 1),
    (12, 9, 4, 1, 1, 0, 0, 0, 2, 1, 0, 1),
    (13, 9, 2, 0, 0, 0, 0, 0, 2, 1, 0, 0),
    (13, 8, 1, 0, 0, 0, 0, 0, 2, 1, 0, 0),
)
IRIS = (
    (0.370, 0.225, 0.130),
    (0.270, 0.165, 0.110),
    (0.480, 0.345, 0.180),
    (0.330, 0.470, 0.330),
    (0.310, 0.490, 0.640),
    (0.440, 0.530, 0.590),
)
# Rows as in SKIN.
IRIS_FOR_SKIN = (
    (3, 1, 3, 4, 5, 4),
    (4, 2, 3, 4, 4, 3),
    (5, 4, 4, 2, 2, 2),
    (6, 6, 4, 1, 0, 1),
    (6, 8, 3, 1, 0, 0),
    (6, 9, 2, 0, 0, 0),
    (6, 9, 1, 0, 0, 0),
    (6, 9, 1, 0, 0, 0),
)
CLOTH = {
    "navy": (0.180, 0.245, 0.380),
    "coral": (0.865, 0.430, 0.370),
    "white": (0.925, 0.925, 0.930),
    "green": (0.205, 0.430, 0.400),
    "mustard": (0.890, 0.690, 0.330),
    "violet": (0.410, 0.370, 0.580),
    "charcoal": (0.270, 0.285, 0.320),
    "sage": (0.570, 0.690, 0.570),
    "rust": (0.700, 0.400, 0.290),
    "blue": (0.330, 0.510, 0.720),
    "wine": (0.500, 0.230, 0.320),
    "oat": (0.800, 0.735, 0.640),
}
BACKGROUND = {
    "sky": (0.780, 0.865, 0.930),
    "peach": (0.960, 0.865, 0.800),
    "mint": (0.830, 0.915, 0.855),
    "lilac": (0.880, 0.850, 0.930),
    "cream": (0.965, 0.925, 0.830),
    "slate": (0.430, 0.495, 0.580),
    "pine": (0.370, 0.480, 0.465),
    "mauve": (0.600, 0.520, 0.600),
    "mist": (0.800, 0.840, 0.850),
    "blush": (0.930, 0.815, 0.810),
}
COLLAR = ("crew", "vneck", "shirt", "turtleneck", "hoodie", "blazer")
BEARD = ("none", "stubble", "full", "goatee", "moustache")

HAIR_FIELDS = (
    "back_w", "back_h", "back_y", "back_len", "curl", "curl_n",
    "volume", "line", "left", "right", "power", "temple", "bun", "texture",
)  # fmt: skip
# back_*: half width, half height, centre and lowest point of the hair behind the head (back_w 0: none; back_len -2:
# a round mass); curl, curl_n: height and number of the outline's lobes; volume: height of the hair over the skull
# (negative: no hair); line: height of the hairline; left, right, power: how it drops to both sides of the parting;
# temple: how far hair reaches down before the ears; bun: 1 with a bun; texture: strength of the soft strands.
STYLE = {
    "bald": (0.0, 0.0, 0.0, -2.0, 0.0, 0.0, -0.30, -2.0, 0.0, 0.0, 1.6, 0.0, 0.0, 0.0),
    "buzz": (0.0, 0.0, 0.0, -2.0, 0.0, 0.0, 0.020, -0.395, 0.9, 0.9, 2.2, 0.26, 0.0, 0.0),
    "crop": (0.0, 0.0, 0.0, -2.0, 0.004, 11.0, 0.070, -0.385, 0.45, 1.0, 2.0, 0.26, 0.0, 0.8),
    "swoop": (0.0, 0.0, 0.0, -2.0, 0.006, 9.0, 0.110, -0.440, 1.30, 0.50, 1.35, 0.24, 0.0, 1.0),
    "quiff": (0.0, 0.0, 0.0, -2.0, 0.010, 7.0, 0.135, -0.420, 0.9, 0.9, 2.6, 0.26, 0.0, 1.0),
    "pixie": (0.475, 0.47, -0.16, 0.04, 0.008, 9.0, 0.080, -0.370, 0.10, 0.95, 1.5, 0.30, 0.0, 0.9),
    "curls": (0.520, 0.47, -0.23, -2.0, 0.022, 15.0, 0.105, -0.360, 0.75, 0.75, 2.0, 0.28, 0.0, 0.3),
    "afro": (0.640, 0.560, -0.220, -2.0, 0.010, 17.0, 0.085, -0.375, 0.9, 0.9, 2.0, 0.28, 0.0, 0.2),
    "bun": (0.0, 0.0, 0.0, -2.0, 0.0, 0.0, 0.055, -0.415, 0.85, 0.85, 2.0, 0.22, 1.0, 0.9),
    "bob": (0.545, 0.53, -0.10, 0.36, 0.0, 0.0, 0.080, -0.245, 0.35, 0.35, 2.0, 0.34, 0.0, 0.8),
    "long": (0.535, 0.56, -0.10, 0.90, 0.0, 0.0, 0.080, -0.490, 0.95, 0.95, 0.95, 0.20, 0.0, 1.0),
    "waves": (0.570, 0.57, -0.09, 0.82, 0.026, 8.0, 0.095, -0.475, 1.4, 0.68, 1.15, 0.20, 0.0, 0.9),
}  # fmt: skip
SHORT = ("buzz", "crop", "swoop", "quiff", "curls", "afro", "bald")
LONG = ("bob", "long", "waves", "bun", "pixie", "curls", "afro")
NAMED = {
    "style": tuple(STYLE),
    "skin": tuple(SKIN),
    "hair": tuple(HAIR_COLOR),
    "cloth": tuple(CLOTH),
    "background": tuple(BACKGROUND),
    "collar": COLLAR,
    "beard": BEARD,
}
"""Every choice by name; an identity holds the index."""
