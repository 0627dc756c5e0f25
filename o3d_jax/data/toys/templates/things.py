"""Toy furniture, dishes and free compositions: templates like those in `creatures`."""

import numpy as np

from o3d_jax.data.toys.palette import Kit
from o3d_jax.data.toys.parts import (
    Part,
    ball,
    box,
    cone,
    ellipsoid,
    lathe,
    limb,
    pillow,
    ring,
    slab,
)


def table(kit: Kit) -> list[Part]:
    """A top on legs, square or round."""
    tall, wide, deep = kit.between(0.6, 0.9), kit.between(0.6, 0.8), kit.between(0.45, 0.8)
    wood = kit.wood if kit.chance(0.5) else kit.main
    thick = kit.between(0.05, 0.08)
    parts = []

    # Square on four legs, or round on three to five that may lean.
    if kit.chance(0.5):
        parts += [
            box(
                kit.pattern(wood, kit.second, 1.2),
                (2 * wide, 0.14, 2 * deep),
                at=(0, tall + 0.07, 0),
            ),
            limb(
                kit.second,
                thick,
                1.3 * thick,
                tall - thick,
                at=(wide - 0.12, tall / 2, deep - 0.12),
                mirror="xz",
            ),
        ]
    else:
        parts += [
            cone(kit.pattern(wood, kit.second, 1.2), wide, wide, 0.14, at=(0, tall + 0.07, 0)),
            limb(
                kit.second,
                thick,
                1.3 * thick,
                tall,
                at=(0, tall / 2, 0.7 * wide),
                turn=(-kit.between(0, 14), 0, 0),
                copies=kit.whole(3, 5),
            ),
        ]

    if kit.chance(0.6):
        vase = ((0, 0), (0.15, 0), (0.24, 0.2), (0.1, 0.42), (0.14, 0.5), (0, 0.5))
        parts.append(lathe(kit.accent, vase, 0.02, at=(0, tall + 0.15, 0)))
    return parts


def chair(kit: Kit) -> list[Part]:
    """Four legs, a seat, a back, maybe arm rests."""
    wide, seat, back = kit.between(0.4, 0.55), kit.between(0.5, 0.7), kit.between(0.6, 0.9)
    soft = kit.pattern(kit.main, kit.second, 0.6)
    parts = [
        box(soft, (2 * wide, 0.16, 2 * wide), 0.06, at=(0, seat, 0)),
        box(
            soft,
            (2 * wide, back, 0.14),
            0.06,
            at=(0, seat + back / 2 + 0.05, -wide + 0.07),
            turn=(-kit.between(0, 8), 0, 0),
        ),
        limb(kit.wood, 0.06, 0.07, seat - 0.1, at=(wide - 0.1, seat / 2, wide - 0.1), mirror="xz"),
    ]
    if kit.chance(0.5):
        parts += [
            box(kit.second, (0.12, 0.1, 1.7 * wide), 0.04, at=(wide, seat + 0.36, 0), mirror="x"),
            limb(kit.wood, 0.05, 0.05, 0.3, at=(wide, seat + 0.15, 0.7 * wide), mirror="x"),
        ]
    return parts


def lamp(kit: Kit) -> list[Part]:
    """A foot, a pole or belly, and a shade."""
    pole, wide, tall = kit.between(0.7, 1.1), kit.between(0.4, 0.6), kit.between(0.4, 0.6)
    shade = kit.pattern(kit.main, kit.light, tall)
    parts = [
        cone(kit.second, kit.between(0.3, 0.42), 0.22, 0.12, at=(0, 0.06, 0)),
        limb(kit.dark, 0.05, 0.05, pole, at=(0, pole / 2 + 0.1, 0)),
        cone(shade, wide, kit.between(0.4, 0.9) * wide, tall, at=(0, pole + 0.2 + tall / 3, 0)),
        ball(kit.accent, 0.07, at=(0, pole + 0.25 + 0.83 * tall, 0)),
    ]
    if kit.chance(0.6):
        belly = kit.between(0.18, 0.28)
        parts.append(ball(kit.second, belly, at=(0, 0.12 + 0.8 * belly, 0)))
    return parts


def dish(kit: Kit) -> list[Part]:
    """A mug, vase, jug or teapot: a turned body, maybe handles, a lid and a spout."""
    count, tall = kit.whole(3, 5), kit.between(0.7, 1.3)
    radii = [kit.between(0.28, 0.6) for _ in range(count)]
    heights = np.linspace(0, tall, count)
    side = tuple((r, float(y)) for r, y in zip(radii, heights, strict=True))
    body = kit.pattern(kit.main, kit.second, tall)
    parts = [lathe(body, ((0, 0), *side, (0, tall)), 0.06)]

    # In turn: a mug with one handle, a vase with two, a teapot with lid and spout, a bowl.
    rim, waist = radii[-1], max(radii)
    style = kit.whole(0, 3)
    if style == 0:
        parts.append(cone(kit.dark, 0.86 * rim, 0.86 * rim, 0.1, at=(0, tall + 0.04, 0)))
        hole = ring(kit.second, 0.25, 0.06, at=(waist + 0.1, tall / 2, 0), turn=(90, 0, 0))
        parts.append(hole)
    elif style == 1:
        hole = ring(kit.accent, 0.24, 0.06, at=(waist, 0.6 * tall, 0), turn=(90, 0, 0), mirror="x")
        parts.append(hole)
    elif style == 2:
        parts += [
            ellipsoid(kit.second, (rim, 0.18, rim), at=(0, tall + 0.03, 0)),
            ball(kit.accent, 0.1, at=(0, tall + 0.28, 0)),
            limb(
                kit.main, 0.12, 0.06, 0.5, at=(waist, 0.55 * tall, 0), turn=(0, 0, -50), blend=0.1
            ),
            ring(kit.second, 0.24, 0.06, at=(-waist - 0.08, tall / 2, 0), turn=(90, 0, 0)),
        ]
    else:
        parts.append(ring(kit.accent, rim, 0.07, at=(0, tall + 0.04, 0)))
    return parts


def chess_piece(kit: Kit) -> list[Part]:
    """A turned pawn or bishop, or a rook or queen with a crown."""
    foot, waist, tall = kit.between(0.38, 0.5), kit.between(0.14, 0.22), kit.between(0.7, 1.1)
    body = ((0, 0), (foot, 0), (foot, 0.1), (1.3 * waist, 0.3), (waist, tall), (0, tall))
    parts = [
        lathe(kit.pattern(kit.main, kit.second, tall), body, 0.03),
        ring(kit.second, 0.85 * foot, 0.09, at=(0, 0.15, 0)),
        cone(kit.second, 0.3, 0.26, 0.09, at=(0, tall, 0)),
    ]
    head = kit.between(0.22, 0.32)
    if kit.chance(0.5):
        tip = ball(kit.accent, 0.08, at=(0, tall + 1.85 * head, 0))
        return [*parts, ball(kit.main, head, at=(0, tall + 0.85 * head, 0)), tip]
    count, at = kit.whole(5, 8), (0, tall + 0.36, 0.26)
    if kit.chance(0.5):
        crown = ball(kit.accent, 0.08, at=at, copies=count)
    else:
        crown = box(kit.accent, (0.14, 0.16, 0.12), at=at, copies=count)
    return [*parts, cone(kit.main, 0.24, 0.32, 0.3, at=(0, tall + 0.18, 0)), crown]


def ring_tower(kit: Kit) -> list[Part]:
    """Rings of falling size on a foot, with a ball on top."""
    count, tube = kit.whole(3, 5), kit.between(0.13, 0.17)
    coats = (kit.main, kit.second, kit.accent, kit.light)
    parts = [cone(kit.wood, 0.62, 0.6, 0.12, at=(0, 0.06, 0))]
    y = 0.12 + tube
    for k in range(count):
        radius = 0.5 - 0.3 * k / (count - 1)
        parts.append(ring(coats[k % len(coats)], radius, tube, at=(0, y, 0)))
        y += 1.85 * tube
    pole = limb(kit.wood, 0.12, 0.1, y, at=(0, y / 2, 0))
    return [*parts, pole, ball(kit.accent, 0.2, at=(0, y + 0.08, 0))]


def treat(kit: Kit) -> list[Part]:
    """A cone or a cup with scoops and a cherry."""
    wide, scoops = kit.between(0.36, 0.44), kit.whole(1, 3)
    cup = kit.chance(0.5)
    tall = 0.5 if cup else kit.between(0.9, 1.1)
    bottom = 0.75 * wide if cup else 0.06
    wafer = kit.pattern(kit.second if cup else kit.wood, kit.light, tall)
    parts = [
        cone(wafer, bottom, wide, tall, at=(0, tall / 2, 0)),
        ring(kit.light, wide, 0.06, at=(0, tall, 0)),
    ]
    y = tall + 0.2
    for k, coat in enumerate((kit.main, kit.second, kit.accent)[:scoops]):
        size = wide * (1.02 - 0.14 * k)
        parts.append(ball(coat, size, at=(0, y, 0)))
        parts.append(ring(coat, 0.9 * size, 0.07, at=(0, y - 0.4 * size, 0), blend=0.1))
        y += 0.85 * size
    return [*parts, ball(kit.accent, 0.11, at=(0, y + 0.1, 0))]


def gift(kit: Kit) -> list[Part]:
    """A box with a ribbon and a bow."""
    wide, tall, deep = kit.between(0.5, 0.7), kit.between(0.5, 1.0), kit.between(0.5, 0.7)
    paper = kit.pattern(kit.main, kit.light, 2 * wide)
    return [
        box(paper, (2 * wide, tall, 2 * deep), at=(0, tall / 2, 0)),
        box(kit.second, (0.18, tall + 0.05, 2 * deep + 0.05), at=(0, tall / 2, 0)),
        box(kit.second, (2 * wide + 0.05, tall + 0.05, 0.18), at=(0, tall / 2, 0)),
        ring(kit.accent, 0.17, 0.06, at=(0.2, tall + 0.15, 0), turn=(90, 0, 25), mirror="x"),
        ball(kit.accent, 0.1, at=(0, tall + 0.08, 0)),
    ]


def trophy(kit: Kit) -> list[Part]:
    """A star, heart, gear or arrow standing on a base."""
    angles, sort = np.linspace(0, 2 * np.pi, 32, endpoint=False), kit.whole(0, 3)

    # The outline of each in turn; the heart is the classic curve of sines and cosines.
    if sort == 0:
        points = kit.whole(5, 7)
        turns = np.pi * np.arange(2 * points) / points
        radii = np.where(np.arange(2 * points) % 2 == 0, 0.6, kit.between(0.26, 0.38))
        x, y = radii * np.sin(turns), radii * np.cos(turns)
    elif sort == 1:
        s = angles + 0.05
        x = 0.58 * np.sin(s) ** 3
        y = 0.036 * (13 * np.cos(s) - 5 * np.cos(2 * s) - 2 * np.cos(3 * s) - np.cos(4 * s)) + 0.06
    elif sort == 2:
        radii = np.where(np.arange(32) % 4 < 2, 0.6, 0.46)  # Eight teeth.
        x, y = radii * np.sin(angles), radii * np.cos(angles)
    else:
        x = np.array([-0.18, 0.18, 0.18, 0.5, 0.0, -0.5, -0.18])
        y = np.array([-0.55, -0.55, 0.05, 0.05, 0.6, 0.05, 0.05])

    outline = tuple((float(a), float(b)) for a, b in zip(x, y, strict=True))
    middle, base = kit.between(0.85, 1.0), kit.pattern(kit.second, kit.light, 0.5)
    stand = cone if kit.chance(0.5) else limb
    return [
        slab(kit.main, outline, kit.between(0.16, 0.3), 0.05, at=(0, middle, 0)),
        ball(kit.accent, 0.16, at=(0, middle, 0.1), mirror="z"),
        stand(kit.dark, 0.1, 0.08, middle - 0.3, at=(0, 0.35, 0)),
        cone(base, 0.44, 0.36, 0.2, at=(0, 0.1, 0)),
    ]


def planet(kit: Kit) -> list[Part]:
    """A ball with a ring around it on a stand."""
    size, y = kit.between(0.42, 0.5), 0.95
    tilt = (kit.between(-25, 25), 0.0, kit.between(-25, 25))
    flat = ((0.0, -0.02), (1.55 * size, -0.02), (1.55 * size, 0.02), (0.0, 0.02))
    return [
        ball(kit.pattern(kit.main, kit.second, 2 * size), size, at=(0, y, 0), turn=tilt),
        lathe(kit.accent, flat, 0.02, at=(0, y, 0), turn=tilt),
        limb(kit.dark, 0.06, 0.05, 0.5, at=(0, 0.35, 0)),
        cone(kit.wood, 0.36, 0.3, 0.12, at=(0, 0.06, 0)),
    ]


def composition(kit: Kit) -> list[Part]:
    """A free stack of solids on one axis, with pairs or rings of smaller ones."""
    parts, y = [], 0.0

    # Two or three solids, each a little sunk into the one below.
    for _ in range(kit.whole(2, 3)):
        wide, tall = kit.between(0.3, 0.6), kit.between(0.3, 0.7)
        coat = kit.pattern(kit.coat(), kit.coat(), tall)
        middle, blend = (0.0, y + tall / 2, 0.0), 0.08 if kit.chance(0.3) else 0.0

        make = kit.whole(0, 4)
        if make == 0:
            parts.append(box(coat, (2 * wide, tall, 2 * wide), 0.05, at=middle, blend=blend))
        elif make == 1:
            parts.append(ellipsoid(coat, (wide, tall / 2, wide), at=middle, blend=blend))
        elif make == 2:
            parts.append(pillow(coat, (wide, tall / 2, wide), at=middle, blend=blend))
        elif make == 3:
            top = wide * kit.between(0.3, 1.0)
            parts.append(cone(coat, wide, top, tall, at=middle, blend=blend))
        else:
            tube = min(tall / 2, 0.45 * wide)
            parts.append(ring(coat, wide - tube, tube, at=(0, y + tube, 0), blend=blend))
            tall = 2 * tube
            parts.append(limb(kit.dark, 0.12, 0.12, tall, at=(0, y + tall / 2, 0)))
        y += 0.9 * tall

    # Small ones around, off the axis, so that no view looks like the next.
    z, size = kit.between(0.4, 0.6), kit.between(0.1, 0.2)
    side = (0.0, kit.between(0.3, 0.7) * y, z)
    if kit.chance(0.5):
        parts.append(ball(kit.accent, size, at=side, copies=kit.whole(2, 6)))
    else:
        bar = limb(
            kit.accent, 0.6 * size, size, 0.3, at=side, turn=(60, 0, 0), copies=kit.whole(2, 5)
        )
        parts.append(bar)
    return [*parts, ball(kit.coat(), kit.between(0.12, 0.25), at=(0, y + 0.08, 0))]
