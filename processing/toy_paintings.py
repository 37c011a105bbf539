"""The paintings of the toy data set (see `toy_artemis`), drawn with PIL from a few words and a seed.

A painting has a *setting* (a background: starry night, meadow, rain, ...) and a *motif* (balloons, a mountain, eyes
in the dark, ...), surrounded by the *brushwork* of the motif's emotion (blue downward strokes, golden rays, ...). The
same scene gives the same pixels everywhere.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance


RGB = tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[float, float, float, float]

SUPERSAMPLING = 4  # paintings are drawn this many times larger and averaged down, for soft edges
PLACES = {  # centre of the motif, in fractions of width and height from the upper left corner
    "on the left": (0.34, 0.52),
    "on the right": (0.66, 0.52),
    "at the top": (0.5, 0.36),
    "at the bottom": (0.5, 0.64),
    "in the middle": (0.5, 0.5),
}
SIZES = {"small": 0.3, "": 0.34, "large": 0.38}  # half the side of the frame, in fractions of the width
COLOURS: dict[str, RGB] = {
    "red": (206, 38, 40),
    "orange": (238, 128, 34),
    "yellow": (248, 212, 62),
    "golden": (226, 176, 60),
    "green": (84, 150, 58),
    "blue": (48, 98, 190),
    "violet": (128, 72, 168),
    "pink": (240, 128, 164),
    "white": (246, 242, 230),
    "grey": (134, 138, 146),
    "brown": (124, 82, 48),
    "black": (30, 26, 34),
}


class _Brush:
    """Paints in a square frame with coordinates from -1 to 1, x to the right and y downwards."""

    def __init__(self, image: Image.Image, rng: np.random.Generator, centre: Point, half: float):
        self.rng = rng
        self.draw = ImageDraw.Draw(image, "RGBA")
        self.scale = half * image.width
        self.origin = (centre[0] * image.width, centre[1] * image.height)

    def at(self, x: float, y: float) -> Point:
        return self.origin[0] + self.scale * x, self.origin[1] + self.scale * y

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.rng.random())

    def pick(self, *colours: RGB) -> RGB:
        return colours[int(self.rng.integers(len(colours)))]

    def tint(self, colour: RGB, light: float = 0.0, jitter: float = 10, alpha: int = 255) -> tuple[int, ...]:
        """Mixes `colour` with white (light > 0) or black (light < 0) and varies it by `jitter`."""
        target, share = (255 if light > 0 else 0), abs(light)
        shake = self.uniform(-jitter, jitter)
        mixed = (c + (target - c) * share + shake + self.uniform(-jitter, jitter) / 2 for c in colour)
        return *(min(255, max(0, round(c))) for c in mixed), alpha

    def shaken(self, points: Iterable[Point], shake: float) -> list[Point]:
        return [(x + self.uniform(-shake, shake), y + self.uniform(-shake, shake)) for x, y in points]

    def ring(self, n: int, radius: float, shake: float) -> list[Point]:
        """Returns n evenly spaced points around the centre, from a random angle, each moved by up to `shake`."""
        start = self.uniform(0, math.tau)
        return self.shaken([_polar(radius, start + math.tau * k / n) for k in range(n)], shake)

    def line(self, points, colour, width: float = 0.05):
        self.draw.line([self.at(*p) for p in points], colour, max(2, round(width * self.scale)), joint="curve")

    def stroke(self, x: float, y: float, length: float, angle: float, colour, width: float):
        """Draws a line of 2 * `length` around (x, y)."""
        dx, dy = _polar(length, angle)
        self.line([(x - dx, y - dy), (x + dx, y + dy)], colour, width)

    def polygon(self, points, colour, edge=None, wobble: float = 0.02):
        corners = self.shaken(points, wobble)
        self.draw.polygon([self.at(*p) for p in corners], colour)
        if edge is not None:
            self.line([*corners, corners[0]], edge, 0.04)

    def disc(self, x: float, y: float, r: float, colour, edge=None, squash: float = 1.0):
        (left, top), (right, bottom) = self.at(x - r, y - r * squash), self.at(x + r, y + r * squash)
        self.draw.ellipse([left, top, right, bottom], colour, edge, max(2, round(0.04 * self.scale)))


def _polar(radius: float, angle: float) -> Point:
    return radius * math.cos(angle), radius * math.sin(angle)


class Brushwork(NamedTuple):  # the strokes around a motif that carry its emotion
    colours: tuple[RGB, ...]
    angle: float  # of a stroke, in radians; if radial, from the outward direction
    radial: bool
    length: float  # of a stroke, in the motif's frame; 0 for dots
    width: float

    def paint(self, b: _Brush):
        # Spread like sunflower seeds, from the rim inwards.
        start = b.uniform(0, math.tau)
        for x, y in b.shaken([_polar(0.86 * math.sqrt((95 - k) / 95), start + 2.4 * k) for k in range(95)], 0.07):
            angle = self.angle + b.uniform(-0.2, 0.2) + (math.atan2(y, x) if self.radial else 0)
            if self.length:
                b.stroke(x, y, self.length / 2, angle, b.tint(b.pick(*self.colours), alpha=240), self.width)
            else:
                b.disc(x, y, self.width / 2, b.tint(b.pick(*self.colours)))


BRUSHWORK = {
    "amusement": Brushwork(((255, 206, 0), (255, 206, 0), (255, 70, 150), (70, 170, 240)), 0.0, False, 0.0, 0.25),
    "awe": Brushwork(((255, 246, 206), (255, 255, 244), (255, 236, 170)), 0.0, True, 0.3, 0.18),
    "contentment": Brushwork(((80, 206, 176), (120, 224, 190), (50, 184, 160)), 0.0, False, 0.24, 0.16),
    "excitement": Brushwork(((240, 30, 200), (200, 20, 230), (255, 90, 190)), 0.0, True, 0.2, 0.15),
    "anger": Brushwork(((226, 16, 22), (250, 40, 30), (200, 6, 14)), -0.8, False, 0.26, 0.16),
    "disgust": Brushwork(((178, 190, 20), (150, 164, 10), (200, 206, 50)), 1.57, False, 0.2, 0.16),
    "fear": Brushwork(((12, 10, 22), (22, 18, 34)), 1.57, True, 0.2, 0.3),
    "sadness": Brushwork(((34, 70, 170), (50, 92, 190), (24, 50, 140)), 1.57, False, 0.28, 0.15),
    "something else": Brushwork(((242, 132, 30), (250, 150, 52), (228, 114, 20)), 0.0, False, 0.17, 0.17),
}


def _balloons(b: _Brush, colour: RGB, edge: RGB, count: int):
    for x, y in b.ring(count, 0.52, 0.1):
        b.line([(x, y - 0.15), (x * 0.7, y * 0.5 + 0.3), (0.1 * x, 0.98)], (*edge, 200), 0.04)
        b.disc(x, y - 0.2, 0.32, b.tint(colour, 0.05, 22), (*edge, 140), squash=1.18)
        b.disc(x - 0.1, y - 0.34, 0.09, b.tint(colour, 0.75))


def _clown(b: _Brush, colour: RGB, edge: RGB, count: int):
    for x, y in ((-0.66, -0.1), (0.66, -0.1), (-0.74, 0.2), (0.74, 0.2), (-0.55, -0.36), (0.55, -0.36)):
        b.disc(x, y, b.uniform(0.2, 0.28), b.tint(colour, 0, 24))
    b.disc(0, 0.15, 0.66, b.tint((250, 226, 196)), (*edge, 160))
    tilt = b.uniform(-0.25, 0.25)
    b.polygon([(-0.36, -0.36), (tilt, -0.98), (0.36, -0.36)], b.tint(colour, -0.1), (*edge, 160))
    for x in (-0.26, 0.26):
        b.disc(x, -0.06, 0.13, b.tint((255, 255, 255)), (30, 24, 40, 255))
        b.disc(x + tilt * 0.2, -0.04, 0.06, (20, 16, 30, 255))
    mouth = [*b.at(-0.42, -0.12), *b.at(0.42, 0.66)]
    b.draw.chord(mouth, 15, 165, (120, 14, 30, 255), (250, 250, 245, 255), max(2, round(0.08 * b.scale)))
    b.disc(0, 0.16, 0.15, b.tint(colour, 0.05))


def _mountain(b: _Brush, colour: RGB, edge: RGB, count: int):
    peak = b.uniform(-0.15, 0.15)
    b.disc(peak, -0.5, 0.3, (255, 248, 214, 190))
    ridge = [(-0.95, 0.9), (-0.5, 0.15), (-0.3, 0.2), (peak, -0.62), (0.28, 0.05), (0.48, -0.02), (0.95, 0.9)]
    b.polygon(ridge, b.tint(colour, -0.15), (*edge, 110), wobble=0.05)
    b.polygon([(peak, -0.6), (0.24, 0.05), (0.3, 0.5), (0.02, 0.88), (-0.12, 0.3)], b.tint(colour, 0.3), wobble=0.04)
    snow = [(peak, -0.64), (peak + 0.18, -0.22), (peak + 0.07, -0.3), (peak - 0.02, -0.16), (peak - 0.18, -0.22)]
    b.polygon(snow, b.tint((252, 252, 255)))


def _tree(b: _Brush, colour: RGB, edge: RGB, count: int):
    b.disc(0, 0.9, 0.6, (20, 30, 20, 110), squash=0.15)
    lean = b.uniform(-0.12, 0.12)
    b.polygon([(-0.15, 0.92), (-0.08 + lean, 0), (0.08 + lean, 0), (0.15, 0.92)], b.tint((104, 66, 40)), (*edge, 110))
    for radius, light, n in ((0.52, -0.25, 10), (0.42, 0.0, 12), (0.26, 0.22, 9)):
        for x, y in b.ring(n, radius, 0.08):
            x, y = x + lean - light * 0.3, y * 0.85 - 0.3 - light * 0.4
            b.disc(x, y, b.uniform(0.17, 0.26), b.tint(colour, light, 16))


def _boat(b: _Brush, colour: RGB, edge: RGB, count: int):
    for k in range(9):
        x, y = b.uniform(-0.6, 0.3), 0.62 + 0.035 * k
        b.line([(x - 0.3, y), (x + b.uniform(0.3, 0.6), y)], b.tint((150, 200, 220), 0, 30, 200), 0.05)
    flip = 1 if b.rng.random() < 0.5 else -1
    b.line([(0, -0.95), (0, 0.5)], b.tint((90, 60, 40)), 0.07)
    b.polygon([(0.06 * flip, -0.92), (0.72 * flip, 0.3), (0.06 * flip, 0.3)], b.tint(colour, 0.05), (*edge, 170))
    b.polygon([(-0.07 * flip, -0.7), (-0.55 * flip, 0.3), (-0.07 * flip, 0.3)], b.tint(colour, -0.15), (*edge, 170))
    b.polygon([(-0.85, 0.4), (0.85, 0.4), (0.55, 0.72), (-0.5, 0.72)], b.tint((116, 70, 40)), (*edge, 170))


def _fireworks(b: _Brush, colour: RGB, edge: RGB, count: int):
    for x, y in b.ring(count, 0.46, 0.08):
        b.line([(x, y), (x * 0.6 + 0.05, (y + 1) / 2), (x * 0.3, 1)], b.tint((255, 236, 190), 0, 10, 130), 0.03)
        reach = b.uniform(0.36, 0.5)
        b.disc(x, y, reach * 0.85, b.tint(colour, 0.2, 10, 60))
        for k, (dx, dy) in enumerate(b.ring(16, reach, 0.05)):
            b.line([(x + 0.3 * dx, y + 0.3 * dy), (x + dx, y + dy)], b.tint(colour, 0.4 * (k % 2), 26), 0.045)
            b.disc(x + dx, y + dy, 0.045, b.tint(colour, 0.6))
        b.disc(x, y, 0.11, (255, 250, 226, 255))


def _spikes(b: _Brush, colour: RGB, edge: RGB, count: int):
    for reach, light in ((1.0, -0.45), (0.82, 0.0), (0.5, 0.3)):
        tips = b.ring(11, reach, 0.08)
        star: list[Point] = []
        for (x, y), (x2, y2) in zip(tips, [*tips[1:], tips[0]], strict=True):
            stretch = b.uniform(0.75, 1.0)
            star += [(x * stretch, y * stretch), ((x + x2) * 0.19, (y + y2) * 0.19)]
        b.polygon(star, b.tint(colour, light), (*edge, 120) if reach == 1.0 else None)


def _slashes(b: _Brush, colour: RGB, edge: RGB, count: int):
    for k in range(7):
        side, offset = (1 if k % 2 else -1), (-0.6, -0.5, 0.0, 0.1, 0.6, 0.5, -0.1)[k] + b.uniform(-0.1, 0.1)
        reach = 0.95 - 0.6 * abs(offset)
        steps = (-reach, -reach / 3, reach / 3, reach)
        path = b.shaken([(t * side + offset, t - side * offset) for t in steps], 0.1)
        b.line(path, (*edge, 130), 0.2)
        b.line(path, b.tint(colour, b.uniform(-0.3, 0.2), 16), 0.14)


def _blobs(b: _Brush, colour: RGB, edge: RGB, count: int):
    for x, y in b.ring(count, 0.45, 0.08):
        y -= 0.2
        for k in range(3):
            drip, length = x + (k - 1) * 0.2, b.uniform(0.35, 0.75)
            b.line([(drip, y), (drip + 0.02, y + length)], b.tint(colour, -0.3), 0.11)
            b.disc(drip + 0.02, y + length, 0.09, b.tint(colour, -0.25))
        for dx, dy in b.ring(5, 0.2, 0.06):
            b.disc(x + dx, y + dy, b.uniform(0.16, 0.24), b.tint(colour, -0.1, 18))
        for dx, dy in b.ring(4, 0.18, 0.1):
            b.disc(x + dx, y + dy, b.uniform(0.04, 0.08), b.tint(colour, -0.5))
        b.disc(x - 0.1, y - 0.12, 0.07, b.tint(colour, 0.7), squash=0.6)


def _eyes(b: _Brush, colour: RGB, edge: RGB, count: int):
    for k, (x, y) in enumerate(b.ring(count, 0.55 if count > 1 else 0.0, 0.06)):
        opening = b.uniform(0.5, 0.8)
        for side in (-0.27, 0.27):
            b.disc(x + side, y, 0.22, b.tint(colour, 0.45 if k % 2 else 0.25), squash=opening)
            b.disc(x + side, y, 0.07, (8, 4, 12, 255), squash=2 * opening)


def _figure(b: _Brush, colour: RGB, edge: RGB, count: int):
    bow = -1 if b.rng.random() < 0.5 else 1
    b.polygon([(0, 0.82), (-0.95 * bow, 0.98), (-0.8 * bow, 0.84), (-0.1 * bow, 0.74)], (16, 16, 28, 130))
    back = [(-0.3, 0.85), (-0.34, 0.2), (-0.18, -0.32), (0.1, -0.44), (0.3, -0.26), (0.22, 0.1), (0.3, 0.85)]
    b.polygon([(x * bow, y) for x, y in back], b.tint(colour, -0.15), (*edge, 190))
    b.line([(0.12 * bow, -0.2), (0.28 * bow, 0.15), (0.22 * bow, 0.48)], b.tint(colour, -0.5), 0.13)
    b.disc(0.34 * bow, -0.46, 0.2, b.tint((206, 172, 148), -0.1), (*edge, 190))
    b.polygon([(0.12 * bow, -0.5), (0.2 * bow, -0.72), (0.46 * bow, -0.68), (0.5 * bow, -0.52)], b.tint(colour, -0.6))


def _flower(b: _Brush, colour: RGB, edge: RGB, count: int):
    bow = -1 if b.rng.random() < 0.5 else 1
    stem = [(-0.3, 0.95), (-0.34, 0.2), (-0.22, -0.5), (0.06, -0.76), (0.36, -0.62), (0.46, -0.3)]
    b.line([(x * bow, y) for x, y in stem], b.tint((120, 150, 70)), 0.1)
    leaf = [(-0.33 * bow, 0.4), (-0.7 * bow, 0.52), (-0.84 * bow, 0.86), (-0.5 * bow, 0.66)]
    b.polygon(leaf, b.tint((120, 150, 70), -0.1))
    for dx, length in ((-0.3, 0.4), (0.3, 0.4), (-0.16, 0.54), (0.16, 0.54), (0, 0.6)):
        x = 0.46 * bow + dx
        petal = [(0.46 * bow, -0.36), (x - 0.14, -0.12), (x, -0.3 + length), (x + 0.14, -0.12)]
        b.polygon(petal, b.tint(colour, -0.1, 18), (*edge, 80))
    b.disc(0.46 * bow, -0.34, 0.15, b.tint((90, 70, 40)))
    for _ in range(4):
        b.disc(b.uniform(-0.1, 0.8) * bow, b.uniform(0.6, 0.92), 0.11, b.tint(colour, -0.2, 18), squash=0.55)


def _grid(b: _Brush, colour: RGB, edge: RGB, count: int):
    step = 1.8 / count
    for row, column in product(range(count), repeat=2):
        x, y = -0.9 + step * column, -0.9 + step * row
        right, bottom = x + step * 0.84, y + step * 0.84
        cell = [(x, y), (right, y), (right, bottom), (x, bottom)]
        b.polygon(cell, b.tint(colour, 0.2 * ((row + column) % 2), 16), (*edge, 170), wobble=0.01)


def _rings(b: _Brush, colour: RGB, edge: RGB, count: int):
    for k in range(count):
        radius = 0.95 * (count - k) / count
        b.disc(0, 0, radius, (*edge, 150))
        b.disc(0, 0, radius - 0.03, b.tint(colour if k % 2 == 0 else (232, 226, 210), 0, 14))


class Motif(NamedTuple):
    emotion: str  # the dominant one
    # Its arguments: brush, colour that the sentences name, colour of outlines, number of parts.
    paint: Callable[[_Brush, RGB, RGB, int], None]
    colours: tuple[str, ...]
    counts: tuple[int, ...] = (1,)  # possible numbers of parts


MOTIFS = {
    "balloons": Motif("amusement", _balloons, ("red", "blue", "violet"), (3, 4, 5)),
    "clown": Motif("amusement", _clown, ("red", "green", "blue")),
    "mountain": Motif("awe", _mountain, ("blue", "violet", "pink")),
    "tree": Motif("contentment", _tree, ("green", "golden", "pink")),
    "boat": Motif("contentment", _boat, ("white", "red", "orange", "yellow")),
    "fireworks": Motif("excitement", _fireworks, ("golden", "white", "green", "blue"), (2, 3, 4)),
    "spikes": Motif("anger", _spikes, ("black", "white", "violet")),
    "slashes": Motif("anger", _slashes, ("black", "white", "grey")),
    "blobs": Motif("disgust", _blobs, ("green", "brown", "violet"), (2, 3, 4)),
    "eyes": Motif("fear", _eyes, ("yellow", "white", "red", "green"), (1, 2, 3)),
    "figure": Motif("sadness", _figure, ("grey", "black", "brown", "green")),
    "flower": Motif("sadness", _flower, ("red", "pink", "white", "orange")),
    "grid": Motif("something else", _grid, ("grey", "white", "brown"), (3, 4)),
    "rings": Motif("something else", _rings, ("grey", "brown", "green"), (4, 5)),
}


def _night(b: _Brush):
    for _ in range(45):
        b.disc(b.uniform(-1, 1), b.uniform(-1, 0.5), b.uniform(0.008, 0.028), b.tint((255, 246, 200), 0, 12, 230))
    hills = [(-1.1, 1.1), (-1.1, 0.62), (-0.4, 0.5), (0.2, 0.7), (0.7, 0.52), (1.1, 0.66), (1.1, 1.1)]
    b.polygon(hills, b.tint((16, 26, 44)))


def _meadow(b: _Brush):
    for y, light in ((0.0, -0.1), (0.3, 0.1), (0.6, -0.02)):
        hill = [(-1.1, y), (-0.3, y - 0.14), (0.4, y + 0.04), (1.1, y - 0.1), (1.1, 1.1), (-1.1, 1.1)]
        b.polygon(hill, b.tint((122, 176, 84), light), wobble=0.08)
    for _ in range(40):
        b.disc(b.uniform(-1, 1), b.uniform(0.15, 1), 0.022, b.tint(b.pick((252, 244, 200), (244, 200, 90))))


def _rain(b: _Brush):
    b.polygon([(-1.1, 0.62), (1.1, 0.58), (1.1, 1.1), (-1.1, 1.1)], b.tint((92, 100, 112)), wobble=0.06)
    for _ in range(75):
        x, y, length = b.uniform(-1.1, 1.1), b.uniform(-1.1, 0.9), b.uniform(0.1, 0.24)
        b.line([(x, y), (x - 0.3 * length, y + length)], b.tint((206, 214, 224), 0, 12, 150), 0.012)


def _swamp(b: _Brush):
    for _ in range(22):
        x, y = b.uniform(-1, 1), b.uniform(-0.1, 1)
        b.disc(x, y, b.uniform(0.08, 0.26), b.tint((70, 76, 40), 0, 14, 120), squash=0.22)
    for _ in range(16):
        x, y, bend = b.uniform(-1, 1), b.uniform(0.2, 1), b.uniform(-0.1, 0.1)
        b.line([(x, y), (x + bend / 2, y - 0.3), (x + bend, y - b.uniform(0.4, 0.6))], b.tint((52, 56, 26)), 0.02)


def _storm(b: _Brush):
    for _ in range(26):
        x, y = b.uniform(-1.1, 1.1), b.uniform(-1, -0.2)
        b.disc(x, y, b.uniform(0.14, 0.32), b.tint((46, 48, 66), 0, 18, 130), squash=0.5)
    for row in range(5):
        y, phase = 0.4 + 0.15 * row, b.uniform(0, 0.3)
        wave = [(-1.2 + phase + 0.15 * k, y - (0.08 if k % 2 else 0.0) * b.uniform(0.5, 1.3)) for k in range(17)]
        b.polygon([*wave, (1.2, 1.1), (-1.2, 1.1)], b.tint((36, 62, 84), 0.02 * row))
        b.line(wave, b.tint((196, 208, 214), 0, 12, 150), 0.016)


def _fair(b: _Brush):
    for k in range(8):
        x = -1.05 + 0.27 * k
        b.polygon([(x, 0.55), (x + 0.13, 0.55), (x + 0.2, 1.1), (x - 0.05, 1.1)], b.tint((238, 150, 140), 0, 12, 190))
    for k in range(11):
        x, y = -1 + 0.2 * k, -0.88 + 0.2 * math.sin(math.pi * k / 10)
        flag = ((232, 92, 92), (86, 164, 206), (250, 206, 90), (122, 186, 122))[k % 4]
        b.polygon([(x - 0.08, y), (x + 0.08, y), (x, y + 0.17)], b.tint(flag))
    for _ in range(45):
        speck = b.pick((236, 110, 150), (90, 170, 210), (250, 210, 100))
        b.disc(b.uniform(-1, 1), b.uniform(-0.6, 1), 0.02, b.tint(speck, 0, 16, 220))


def _embers(b: _Brush):
    for _ in range(30):
        x, y, length = b.uniform(-1.1, 1.1), b.uniform(-0.5, 1.1), b.uniform(0.2, 0.5)
        b.line([(x, y), (x + 0.5 * length, y - length)], b.tint((220, 84, 30), 0, 26, 80), 0.06)
    for _ in range(45):
        b.disc(b.uniform(-1, 1), b.uniform(-1, 1), b.uniform(0.01, 0.024), b.tint((255, 184, 80), 0, 20, 220))


def _wall(b: _Brush):
    b.polygon([(-1.1, 0.66), (1.1, 0.66), (1.1, 1.1), (-1.1, 1.1)], b.tint((168, 148, 122)), wobble=0.05)
    b.line([(-1.1, 0.66), (1.1, 0.66)], b.tint((130, 112, 92), 0, 8, 160), 0.02)
    x = b.uniform(-0.8, 0.4)
    b.polygon([(x, -1.1), (x + 0.5, -1.1), (x + 0.2, 0.64), (x - 0.4, 0.64)], (255, 250, 232, 60))


def _sunset(b: _Brush):
    x = b.uniform(-0.7, 0.7)
    b.disc(x, 0.46, 0.26, (255, 236, 150, 255))
    b.polygon([(-1.1, 0.46), (1.1, 0.46), (1.1, 1.1), (-1.1, 1.1)], b.tint((120, 54, 92)))
    for k in range(34):
        y, width = b.uniform(0.5, 1), b.uniform(0.1, 0.35)
        middle = x + b.uniform(-0.2, 0.2) if k % 2 else b.uniform(-1, 1)
        b.line([(middle - width, y), (middle + width, y)], b.tint((250, 176, 96), 0, 20, 150 if k % 2 else 70), 0.022)


class Setting(NamedTuple):
    paint: Callable[[_Brush], None]  # the whole picture is the frame
    gradient: tuple[RGB, ...]  # from the top of the picture to the bottom
    slant: float  # direction of the brush strokes, in radians
    edge: RGB  # a contrasting colour, for the outlines of motifs


LIGHT, DARK = (250, 240, 216), (44, 30, 44)
SETTINGS = {
    "night": Setting(_night, ((14, 18, 54), (30, 44, 104), (54, 78, 132), (70, 92, 130)), 0.3, LIGHT),
    "meadow": Setting(_meadow, ((150, 202, 234), (200, 226, 232), (168, 206, 130), (112, 164, 74)), 0.1, DARK),
    "rain": Setting(_rain, ((104, 110, 122), (142, 148, 158), (128, 136, 146), (96, 104, 114)), 1.3, DARK),
    "swamp": Setting(_swamp, ((136, 134, 92), (118, 116, 66), (92, 92, 48), (66, 66, 36)), 0.0, LIGHT),
    "storm": Setting(_storm, ((40, 40, 58), (74, 76, 96), (108, 112, 124), (40, 64, 84)), -0.4, LIGHT),
    "fair": Setting(_fair, ((246, 222, 190), (250, 232, 206), (248, 220, 200), (244, 206, 186)), 0.8, DARK),
    "embers": Setting(_embers, ((48, 22, 22), (92, 36, 28), (136, 56, 34), (170, 84, 44)), -1.0, LIGHT),
    "wall": Setting(_wall, ((222, 210, 186), (214, 200, 174), (206, 190, 162), (190, 172, 144)), 1.5, DARK),
    "sunset": Setting(_sunset, ((84, 50, 120), (190, 82, 110), (248, 146, 72), (252, 200, 100)), 0.0, DARK),
}


@dataclass(frozen=True)
class Scene:
    """The content of a painting, in words. `seed` and `index` determine its brush strokes."""

    seed: int
    index: int
    motif: str
    setting: str
    colour: str
    place: str
    size: str

    @property
    def count(self) -> int:
        counts = MOTIFS[self.motif].counts
        # An emotion recurs every nine paintings. Without `// 9`, a motif with three counts would always use one.
        return counts[self.index // 9 % len(counts)]

    def generator(self, purpose: str) -> np.random.Generator:
        # One stream per purpose: the setting is the same with and without its motif.
        stream = ("setting", "motif", "labels", "sentences").index(purpose)
        return np.random.Generator(np.random.PCG64([self.seed, self.index, stream]))


def paint_scene(scene: Scene, image_size: int = 64, *, with_motif: bool = True) -> tuple[Image.Image, Box]:
    """Paints a scene.

    Returns the picture (RGB, image_size x image_size) and the box (x0, y0, x1, y1) of its motif and brushwork, in
    fractions from the upper left corner. Without the motif, only pixels in this box differ, and zeros are returned.
    """
    setting, rng, side = SETTINGS[scene.setting], scene.generator("setting"), image_size * SUPERSAMPLING
    column = np.array(setting.gradient, dtype=np.uint8)[:, None]
    canvas = Image.fromarray(column).resize((side, side), Image.Resampling.BICUBIC)
    brush = _Brush(canvas, rng, (0.5, 0.5), 0.5)
    for x, y in rng.random((110, 2)) * 2 - 1:
        under: Any = canvas.getpixel([min(side - 1, int(c)) for c in brush.at(x, y)])
        angle, length = setting.slant + brush.uniform(-0.35, 0.35), brush.uniform(0.08, 0.22)
        brush.stroke(x, y, length, angle, brush.tint(under, 0, 18, 170), brush.uniform(0.04, 0.1))
    setting.paint(brush)
    canvas = ImageEnhance.Color(canvas).enhance(0.75)  # muted, so that the motif stands out
    # Imitates a dry brush: horizontal or vertical streaks of brightness 0.9 to 1.1.
    noise = Image.fromarray(rng.integers(0, 256, (image_size, image_size // 4), dtype=np.uint8))
    noise = noise.transpose(Image.Transpose.ROTATE_90) if abs(math.sin(setting.slant)) > 0.7 else noise
    streaks = noise.resize((image_size, image_size), Image.Resampling.BICUBIC)
    grain = 0.9 + np.asarray(streaks, dtype=np.float64)[..., None] / 255 * 0.2
    before = canvas.copy()
    if with_motif:
        _paint_motif(scene, canvas)
    box = _changed_box(before, canvas)
    pixels = np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float64) * grain
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)), box


def motif_box(scene: Scene, image_size: int = 64) -> Box:
    """Returns the box of the motif alone. The box that `paint_scene` returns includes the brushwork."""
    canvas = Image.new("RGB", (image_size * SUPERSAMPLING,) * 2, "white")
    return _changed_box(_paint_motif(scene, canvas), canvas)


def _changed_box(before: Image.Image, after: Image.Image) -> Box:
    """Returns the box of the changed pixels, in fractions, rounded outwards to pixels of the finished picture."""
    left, top, right, bottom = ImageChops.difference(before, after).getbbox() or (0, 0, 0, 0)
    size, step = after.width // SUPERSAMPLING, SUPERSAMPLING
    return left // step / size, top // step / size, -(-right // step) / size, -(-bottom // step) / size


def _paint_motif(scene: Scene, canvas: Image.Image) -> Image.Image:
    """Paints brushwork and motif, and returns a copy of the canvas with the brushwork only."""
    motif, rng = MOTIFS[scene.motif], scene.generator("motif")
    half = SIZES[scene.size] * (0.97 + 0.06 * float(rng.random()))
    # The frame is moved a little, but stays in the picture.
    x, y = (min(1 - half, max(half, c + 0.06 * (float(rng.random()) - 0.5))) for c in PLACES[scene.place])
    BRUSHWORK[motif.emotion].paint(_Brush(canvas, rng, (x, y), half))
    brushwork_only, brush = canvas.copy(), _Brush(canvas, rng, (x, y), half * 0.64)
    motif.paint(brush, COLOURS[scene.colour], SETTINGS[scene.setting].edge, scene.count)
    return brushwork_only
