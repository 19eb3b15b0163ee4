"""The colours of the drawn world, as hex codes, and what is done with a colour."""

import numpy as np


def rgb(code: str) -> np.ndarray:
    """A hex code such as "7fb04f" as red, green and blue in 0..1, float32."""
    return np.array(list(bytes.fromhex(code)), np.float32) / 255


def mix(a, b, t: float):
    """`a` for t = 0, `b` for t = 1, and what lies between them."""
    return a + (b - a) * np.float32(t)


BLACK, WHITE = rgb("000000"), rgb("ffffff")
SKIES = {  # three colours each: zenith, middle, horizon
    "dawn": [
        "5a79b8 e9a6a6 ffe0b0", "7c6fb0 f0a9b8 ffd9c0", "4f8fa8 f5c9a0 fff0c8",
        "93acd8 f4c7cf fbe8d3", "6fb5b0 f2d5b0 fff1cf", "496a9c c98fae ffc9a3",
    ],
    "day": [
        "3f8fd2 86c0ea dff0f5", "2f9fb8 86cfd0 f1efd8", "6db3e6 a9d6f0 fdf3dc",
        "1f66b0 5fa3dc cfe6ef", "6faac0 bcd6cc f7e2b5", "8f9fd6 bcc3e8 f3e6ee",
        "4aa3a0 9fd8c6 f4f1d6", "5596d8 9cc6f0 ffe9dc",
    ],
    "dusk": [
        "2d2f6b b0487a ffab5c", "3b2a5e d9534f ffc15e", "1f4a74 e07a5f ffd28a",
        "51306e c75b93 ffb199", "6b2737 e2583e ffd166", "22425c 8a6f9c f7b69a",
        "1d3557 6d5a8c ff8e72",
    ],
    "night": [
        "0b1540 1c3370 3f639e", "07182b 123a5a 2f7088", "140f3a 34246b 6a4c93",
        "0a1f2e 17434c 3b7a70", "101326 262c4a 52597d", "1a1030 45235a 8a4a7a",
    ],
}  # fmt: skip
OVERCAST = {
    "dawn": ["8c93a8 c3b4bb ead3c5", "9aa3a5 c4c2b8 e6dcc6"],
    "day": ["8e9aa6 b4bdc4 d9dcda", "7f8b92 a9afae d5d2c6", "78869c a3b0c2 cfd6df"],
    "dusk": ["4c4a66 8d6f85 d9a08c", "4d5668 86808c c9a892"],
    "night": ["151a2b 2a3248 4a536b"],
}
# What the light does to a colour seen in full daylight.
TINTS = {
    "dawn": (1.0, 0.90, 0.88),
    "day": (1.0, 1.0, 1.0),
    "dusk": (0.80, 0.61, 0.66),
    "night": (0.34, 0.42, 0.61),
}
LIGHTS = {"dawn": "fff0c4", "day": "fffbe6", "dusk": "ffe2a0", "night": "eef2ff"}
GROUNDS = {
    "meadow": ["7fb04f", "5f9a4a", "97b957", "4f8f5f", "8cbf6a"],
    "snow": ["eaf0f8", "f4f3f2", "dfe8f4"],
    "sand": ["ead09a", "e2bf86", "f0dcb4"],
    "autumn": ["c8943f", "b9803a", "cfa552", "a8793f"],
    "wheat": ["e0bd58", "d9b24a", "e8cc78"],
    "lavender": ["9a84c6", "8a76bd", "ad94d0"],
}
WALLS = {
    "red": "c0392f",
    "white": "f3efe6",
    "yellow": "efc04a",
    "blue": "4f86b8",
    "orange": "dd7b35",
    "pink": "e79aa5",
    "brown": "8a5a3c",
    "green": "5d9070",
}
ROOFS = ["5a4038", "8f3b2e", "4a4f5c", "a8563a", "3f5566", "6b5b4d"]
RIDGES = ["4f7f6a", "5b6c8f", "6a5f88", "3f6f80", "7d6a72", "56755a", "8a6f5c"]
CONIFERS = ["2f5e46", "27564f", "3d6b45", "2d4f58", "47703f"]
LEAVES = {
    "green": ["5f9a45", "4c8a4c", "7fae4a", "3f7f55"],
    "autumn": ["d9772b", "c9502b", "e3a52f", "b5402f"],
    "blossom": ["f0a6bd", "f5c2cf", "e68aa9"],
}
SAILS = {
    "white": "faf6ec",
    "red": "d2493a",
    "yellow": "f2c04b",
    "orange": "e8863a",
    "blue": "5d93c4",
}
HULLS = {"brown": "7a4a30", "red": "b03a2e", "white": "efe9dc", "blue": "34618f", "green": "4a7d62"}
