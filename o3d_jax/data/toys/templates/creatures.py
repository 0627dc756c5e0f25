"""Toy animals, figures and plants: templates that turn a kit into parts.

All stand on y = 0 and look along +z; lengths are in units of about half the toy's height.
"""

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


def snowman(kit: Kit) -> list[Part]:
    """Stacked balls with eyes, a nose, and maybe a hat, a scarf and buttons."""
    low, middle, head = kit.between(0.55, 0.65), kit.between(0.4, 0.48), kit.between(0.28, 0.35)
    y_middle = low + 0.85 * middle + 0.6 * low
    y_head = y_middle + 0.6 * middle + 0.85 * head
    white = kit.light if kit.chance(0.6) else kit.main

    parts = [
        ball(white, low, at=(0, low * 0.9, 0)),
        ball(white, middle, at=(0, y_middle, 0), blend=0.05),
        ball(white, head, at=(0, y_head, 0), blend=0.05),
        ball(kit.dark, 0.05, at=(0.13, y_head + 0.08, 0.88 * head), mirror="x"),
        cone(kit.accent, 0.07, 0.01, 0.3, at=(0, y_head - 0.02, head + 0.1), turn=(90, 0, 0)),
        ball(kit.dark, 0.05, at=(0, y_middle + 0.12, 0.95 * middle)),
        ball(kit.dark, 0.05, at=(0, y_middle - 0.1, 0.97 * middle)),
    ]

    # A hat of brim and crown, and a scarf.
    if kit.chance(0.7):
        parts += [
            cone(kit.second, 0.36, 0.36, 0.06, at=(0, y_head + 0.75 * head, 0)),
            cone(kit.second, 0.22, 0.2, 0.3, at=(0, y_head + 0.75 * head + 0.15, 0)),
        ]
    if kit.chance(0.6):
        parts.append(ring(kit.accent, 0.8 * head, 0.08, at=(0, y_head - 0.7 * head, 0)))
    return parts


def quadruped(kit: Kit) -> list[Part]:
    """An animal on four legs: body, head, snout, ears, tail."""
    length, girth, legs = kit.between(0.5, 0.75), kit.between(0.3, 0.42), kit.between(0.25, 0.5)
    head = kit.between(0.24, 0.34)
    y, z = legs + 0.75 * girth, length + 0.35 * head
    y_head = y + kit.between(0.15, 0.5)
    body = kit.pattern(kit.main, kit.second, 2 * girth)
    make = pillow if kit.chance(0.3) else ellipsoid

    # Body, head and snout; legs by both mirrors; eyes, nose and tail.
    parts = [
        make(body, (girth, girth, length), at=(0, y, 0)),
        ellipsoid(kit.main, (head, 0.95 * head, head), at=(0, y_head, z), blend=0.1),
        ellipsoid(
            kit.second, (0.5 * head, 0.4 * head, 0.5 * head), at=(0, y_head - 0.1, z + 0.8 * head)
        ),
        limb(
            kit.main,
            0.1,
            0.13,
            legs,
            at=(0.6 * girth, 0.5 * legs + 0.1, 0.62 * length),
            mirror="xz",
            blend=0.05,
        ),
        ball(kit.dark, 0.05, at=(0.45 * head, y_head + 0.3 * head, z + 0.8 * head), mirror="x"),
        ball(kit.dark, 0.06, at=(0, y_head - 0.02, z + 1.28 * head)),
        limb(
            kit.second,
            0.05,
            0.08,
            kit.between(0.1, 0.5),
            at=(0, y + 0.2, -length - 0.1),
            turn=(-40, 0, 0),
        ),
    ]

    y_ear, tall = y_head + 0.85 * head, kit.between(0.12, 0.35)
    ear = ellipsoid(
        kit.second, (0.11, tall, 0.06), at=(0.6 * head, y_ear, z), turn=(0, 0, -20), mirror="x"
    )
    return [*parts, ear]


def bird(kit: Kit) -> list[Part]:
    """A duck or chick: body, head, beak, wings, tail, feet."""
    girth, head = kit.between(0.42, 0.52), kit.between(0.28, 0.36)
    y, long = girth + 0.12, kit.between(0.5, 0.75)
    y_head, z_head = y + girth + 0.35 * head + kit.between(-0.05, 0.2), 0.35 * long

    # Body, head, beak, eyes; wings, tail, feet.
    return [
        ellipsoid(kit.main, (girth, girth, long), at=(0, y, 0), turn=(-10, 0, 0)),
        ball(kit.main, head, at=(0, y_head, z_head), blend=0.2),
        ellipsoid(
            kit.accent, (0.16, 0.06, kit.between(0.16, 0.26)), at=(0, y_head - 0.04, z_head + head)
        ),
        ball(
            kit.dark,
            0.05,
            at=(0.55 * head, y_head + 0.28 * head, z_head + 0.74 * head),
            mirror="x",
        ),
        ellipsoid(
            kit.second,
            (0.1, 0.24, 0.36),
            at=(girth - 0.02, y + 0.02, -0.08),
            turn=(15, -8, -12),
            mirror="x",
        ),
        limb(
            kit.main, 0.1, 0.03, 0.35, at=(0, y + 0.22, -long - 0.02), turn=(-55, 0, 0), blend=0.2
        ),
        ellipsoid(kit.accent, (0.14, 0.05, 0.22), at=(0.2, 0.05, 0.18), mirror="x"),
    ]


def robot(kit: Kit) -> list[Part]:
    """Box body and head, arms, legs, eyes and an antenna."""
    wide, tall, deep = kit.between(0.6, 0.8), kit.between(0.6, 0.8), kit.between(0.4, 0.55)
    legs, head = kit.between(0.25, 0.45), kit.between(0.36, 0.48)
    y, y_head = legs + tall / 2, legs + tall + 0.08 + head / 2
    panel = kit.pattern(kit.second, kit.accent, 0.3)

    # From the trunk up to the antenna, then arms, legs and feet.
    return [
        box(kit.main, (wide, tall, deep), 0.07, at=(0, y, 0)),
        box(panel, (0.55 * wide, 0.45 * tall, 0.06), 0.02, at=(0, y + 0.05, deep / 2)),
        cone(kit.dark, 0.12, 0.12, 0.2, at=(0, legs + tall + 0.04, 0)),
        box(kit.second, (1.25 * head, head, head), 0.06, at=(0, y_head, 0)),
        ball(
            kit.light,
            kit.between(0.08, 0.11),
            at=(0.27 * head, y_head + 0.06, head / 2),
            mirror="x",
        ),
        box(kit.dark, (0.5 * head, 0.06, 0.06), 0.02, at=(0, y_head - 0.13, head / 2)),
        limb(kit.dark, 0.03, 0.03, 0.2, at=(0, y_head + head / 2 + 0.1, 0)),
        ball(kit.accent, 0.09, at=(0, y_head + head / 2 + 0.24, 0)),
        limb(
            kit.second,
            0.11,
            0.09,
            0.8 * tall,
            at=(wide / 2 + 0.12, y - 0.02, 0),
            turn=(0, 0, kit.between(2, 14)),
            mirror="x",
        ),
        box(
            kit.dark,
            (0.28 * wide, legs + 0.1, 0.6 * deep),
            at=(0.25 * wide, legs / 2, 0),
            mirror="x",
        ),
        box(
            kit.accent,
            (0.34 * wide, 0.14, 0.9 * deep),
            at=(0.25 * wide, 0.07, 0.1 * deep),
            mirror="x",
        ),
    ]


def mushroom(kit: Kit) -> list[Part]:
    """A stem and a spotted cap, maybe with a small one beside it."""
    wide, high, stem = kit.between(0.55, 0.8), kit.between(0.35, 0.65), kit.between(0.5, 0.9)
    dome = tuple((wide * c, high * s) for c, s in ((0.95, 0.2), (0.8, 0.55), (0.5, 0.85)))
    cap = kit.pattern(kit.main, kit.light, 1.2 * high)
    stalk = kit.light if kit.chance(0.6) else kit.second
    return [
        limb(
            stalk, kit.between(0.2, 0.3), kit.between(0.14, 0.22), stem, at=(0, stem / 2 + 0.2, 0)
        ),
        lathe(
            cap,
            ((0, 0.05), (0.8 * wide, 0), (wide, 0.05 * high), *dome, (0, high)),
            0.05,
            at=(0, stem + 0.1, 0),
            blend=0.04,
        ),
        ring(kit.second, 0.22, 0.05, at=(0, 0.65 * stem, 0), blend=0.05),
    ]


def tree(kit: Kit) -> list[Part]:
    """A trunk under stacked cones or a crown of balls."""
    trunk = kit.between(0.35, 0.7)
    parts = [cone(kit.wood, kit.between(0.12, 0.2), 0.12, trunk + 0.2, at=(0, trunk / 2, 0))]

    # A fir: tiers that overlap by a third, each smaller than the one below.
    if kit.chance(0.5):
        tiers, wide, y = kit.whole(2, 4), kit.between(0.55, 0.75), trunk
        for k in range(tiers):
            tier = kit.main if k % 2 == 0 or kit.chance(0.5) else kit.second
            radius = wide * (1 - 0.75 * k / tiers)
            height = 1.0 * radius + 0.1
            parts.append(cone(tier, radius, 0.02, height, at=(0, y + height / 2, 0)))
            y += 0.62 * height
        top = kit.pattern(kit.accent, kit.accent, 1)
        return [*parts, ball(top, 0.1, at=(0, y + 0.28, 0))] if kit.chance(0.5) else parts

    # Or a leafy tree: a crown of balls around one, maybe with fruit.
    crown, blobs = kit.between(0.42, 0.55), kit.whole(3, 6)
    y = trunk + 0.8 * crown
    parts += [
        ball(kit.main, crown, at=(0, y + 0.15, 0)),
        ball(kit.main, 0.6 * crown, at=(0, y, 0.6 * crown), copies=blobs, blend=0.1),
    ]
    if kit.chance(0.6):
        parts.append(ball(kit.accent, 0.1, at=(0, y + 0.1, 1.15 * crown), copies=blobs))
    return parts


def cactus(kit: Kit) -> list[Part]:
    """A ribbed column with two bent arms in a pot."""
    tall, thick, pot = kit.between(0.8, 1.2), kit.between(0.2, 0.28), kit.between(0.3, 0.4)
    y_arm, out = 0.45 + kit.between(0.3, 0.5) * tall, thick + kit.between(0.2, 0.3)
    up = kit.between(0.2, 0.4)
    return [
        cone(kit.pattern(kit.second, kit.accent, 0.4), 0.75 * pot, pot, 0.45, at=(0, 0.22, 0)),
        limb(kit.main, thick, 0.9 * thick, tall, at=(0, 0.4 + tall / 2, 0)),
        limb(
            kit.main,
            0.11,
            0.11,
            out,
            at=(out / 2, y_arm, 0),
            turn=(0, 0, 90),
            mirror="x",
            blend=0.08,
        ),
        limb(kit.main, 0.11, 0.1, up, at=(out, y_arm + up / 2, 0), mirror="x", blend=0.08),
        ball(kit.accent, 0.11, at=(0, 0.4 + tall + 0.9 * thick, 0)),
    ]


def flower(kit: Kit) -> list[Part]:
    """A blossom of petals on a stem in a pot, looking up."""
    stem, petals, long = kit.between(0.7, 1.0), kit.whole(5, 8), kit.between(0.24, 0.34)
    lift, y = kit.between(-25, 35), 0.4 + stem
    pot = kit.pattern(kit.second, kit.light, 0.4)

    # Pot, earth and stem; blossom, petals that lift or hang, and two leaves.
    return [
        cone(pot, 0.26, 0.36, 0.5, at=(0, 0.25, 0)),
        cone(kit.dark, 0.3, 0.3, 0.06, at=(0, 0.49, 0)),
        limb(kit.wood, 0.06, 0.06, stem, at=(0, 0.4 + stem / 2, 0)),
        ball(kit.accent, 0.2, at=(0, y + 0.05, 0)),
        ellipsoid(
            kit.main,
            (2.4 * long / petals + 0.05, 0.07, long),
            at=(0, y + 0.4 * long * lift / 35, 0.12 + long),
            turn=(-lift, 0, 0),
            copies=petals,
        ),
        ellipsoid(
            kit.second,
            (0.13, 0.04, 0.26),
            at=(0, 0.4 + 0.4 * stem, 0.26),
            turn=(-25, 0, 0),
            copies=2,
        ),
    ]


def pumpkin(kit: Kit) -> list[Part]:
    """A ribbed fruit with a stem, maybe with leaves."""
    ribs, wide, tall = kit.whole(6, 10), kit.between(0.3, 0.42), kit.between(0.4, 0.75)
    parts = [
        ellipsoid(kit.main, (0.3, tall, wide), at=(0, tall, 0.32), copies=ribs, blend=0.03),
        limb(kit.wood, 0.1, 0.07, 0.25, at=(0, 2 * tall + 0.02, 0)),
    ]
    if kit.chance(0.6):
        parts.append(
            ellipsoid(
                kit.second,
                (0.12, 0.04, 0.24),
                at=(0, 2 * tall - 0.0, 0.28),
                turn=(8, 0, 0),
                copies=kit.whole(2, 4),
            )
        )
    return parts


def fish(kit: Kit) -> list[Part]:
    """A fish on a stand: body, tail fin, side fins, eyes."""
    long, tall, wide = kit.between(0.6, 0.8), kit.between(0.32, 0.5), kit.between(0.2, 0.3)
    y, fin = 0.35 + tall, kit.between(0.25, 0.36)
    tail = ((0.0, 0.1), (0.0, -0.1), (-fin, -fin), (-0.7 * fin, 0.0), (-fin, fin))
    body = kit.pattern(kit.main, kit.light, 2 * long)
    return [
        ellipsoid(body, (tall, long, wide), at=(0, y, 0), turn=(0, 90, 90)),
        slab(kit.second, tail, 0.08, at=(0, y, -0.88 * long), turn=(0, -90, 0)),
        ball(kit.light, 0.1, at=(0.75 * wide, y + 0.1, 0.6 * long), mirror="x"),
        ball(kit.dark, 0.06, at=(0.75 * wide + 0.06, y + 0.1, 0.62 * long), mirror="x"),
        ellipsoid(
            kit.second,
            (0.04, 0.13, 0.22),
            at=(wide + 0.05, y - 0.1, 0.0),
            turn=(0, -35, 0),
            mirror="x",
        ),
        limb(kit.dark, 0.05, 0.05, 0.4, at=(0, 0.25, 0)),
        cone(kit.accent, 0.32, 0.28, 0.1, at=(0, 0.05, 0)),
    ]


def caterpillar(kit: Kit) -> list[Part]:
    """A row of balls that alternate in color, with feelers and feet."""
    count, radius = kit.whole(3, 5), kit.between(0.24, 0.3)
    step = 1.4 * radius
    parts = []

    # The last ball is the head: larger, and held higher.
    for k in range(count):
        coat = kit.main if k % 2 == 0 else kit.second
        z, last = step * (k - (count - 1) / 2), k == count - 1
        size = 1.2 * radius if last else radius
        y = 1.1 * radius + (0.35 * radius if last else 0.0)
        parts += [
            ball(coat, size, at=(0, y, z)),
            ball(kit.accent, 0.08, at=(0.6 * radius, 0.08, z), mirror="x"),
        ]

    front, y = step * (count - 1) / 2, 1.45 * radius
    return [
        *parts,
        ball(kit.dark, 0.05, at=(0.45 * radius, y + 0.4 * radius, front + radius), mirror="x"),
        limb(
            kit.dark,
            0.025,
            0.025,
            0.3,
            at=(0.16, y + 1.5 * radius, front),
            turn=(0, 0, -20),
            mirror="x",
        ),
        ball(kit.accent, 0.06, at=(0.22, y + 1.5 * radius + 0.17, front), mirror="x"),
    ]
