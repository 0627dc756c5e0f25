"""Random choices for a toy object: sizes, and a palette of colors that go together."""

from dataclasses import dataclass

import numpy as np

from o3d_jax.data.toys.parts import Coat, Number, Triple
from o3d_jax.data.toys.shapes import Pattern
from o3d_jax.files.srgb import to_display


def from_oklch(lightness: float, chroma: float, hue_deg: float) -> Triple:
    """Returns the sRGB of an OKLCH color in [0, 1]; what the screen lacks is clipped.

    Source: B. Ottosson, "A perceptual color space for image processing" (2020).
    """
    # Cartesian coordinates, then the cube roots of what the eye's cones see, then linear sRGB.
    a, b = chroma * np.cos(np.deg2rad(hue_deg)), chroma * np.sin(np.deg2rad(hue_deg))
    cone_roots = np.array(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )

    linear = np.clip(to_linear @ cone_roots**3, 0, 1)
    red, green, blue = to_display(linear)
    return (float(red), float(green), float(blue))


@dataclass(frozen=True)
class Kit:
    """What a template builds an object from."""

    rng: np.random.Generator
    main: Coat
    second: Coat
    accent: Coat
    light: Coat
    """Off-white."""
    dark: Coat
    wood: Coat

    def between(self, low: Number, high: Number) -> float:
        """Returns a number drawn evenly from [low, high)."""
        return float(self.rng.uniform(low, high))

    def whole(self, low: int, high: int) -> int:
        """Returns a whole number from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, probability: Number) -> bool:
        """Returns True with this probability."""
        return bool(self.rng.random() < probability)

    def coat(self) -> Coat:
        """Returns one of the three colors."""
        return (self.main, self.second, self.accent)[self.whole(0, 2)]

    def pattern(self, under: Coat, over: Coat, length: Number) -> Coat:
        """Returns a pattern of two coats for a part about `length` long, or often only one."""
        pattern = (
            Pattern.PLAIN,
            Pattern.PLAIN,
            Pattern.STRIPES,
            Pattern.WEDGES,
            Pattern.CHECKS,
            Pattern.FADE,
            Pattern.SPLIT,
            Pattern.DOTS,
        )[self.whole(0, 7)]

        # Lengths between repetitions go with the part; `Pattern` says what each number means.
        rate, phase = self.whole(2, 4) / length, 0.0
        if pattern == Pattern.STRIPES:
            phase = 0.25
        elif pattern == Pattern.WEDGES:
            rate = float(self.whole(3, 6))
        elif pattern == Pattern.FADE:
            rate = 1 / length
        elif pattern == Pattern.SPLIT:
            phase = length * self.between(-0.15, 0.2)
        elif pattern == Pattern.DOTS:
            phase = float(self.whole(5, 8))

        return Coat(first=under.first, second=over.first, pattern=pattern, rate=rate, phase=phase)


def draw_kit(rng: np.random.Generator) -> Kit:
    """Returns a kit whose three colors are related hues, saturated but not neon."""
    hue = rng.uniform(0, 360)
    # Analogous, split-complementary, triadic, complementary and warm-cool schemes.
    offsets = ((35, -35), (150, 210), (120, 240), (180, 30), (60, 180))[rng.integers(5)]

    def plain(lightness, chroma, hue):
        return Coat(first=from_oklch(lightness, chroma, hue))

    return Kit(
        rng=rng,
        main=plain(rng.uniform(0.5, 0.8), rng.uniform(0.08, 0.17), hue),
        second=plain(rng.uniform(0.45, 0.88), rng.uniform(0.05, 0.15), hue + offsets[0]),
        accent=plain(rng.uniform(0.55, 0.85), rng.uniform(0.1, 0.18), hue + offsets[1]),
        light=plain(rng.uniform(0.84, 0.92), rng.uniform(0.0, 0.04), rng.uniform(0, 360)),
        dark=plain(rng.uniform(0.22, 0.36), rng.uniform(0.0, 0.06), rng.uniform(0, 360)),
        wood=plain(rng.uniform(0.42, 0.68), rng.uniform(0.05, 0.09), rng.uniform(50, 75)),
    )
