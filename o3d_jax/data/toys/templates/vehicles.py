"""Toy vehicles and buildings: templates like those in `creatures`."""

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


def rocket(kit: Kit) -> list[Part]:
    """A hull with a nose, fins, portholes and a nozzle."""
    thick, tall, fins = kit.between(0.28, 0.38), kit.between(1.0, 1.4), kit.whole(3, 4)
    nose = kit.between(0.4, 0.65)
    hull = ((0, 0), (0.75 * thick, 0), (thick, 0.35 * tall), (0.85 * thick, tall), (0, tall))
    fin = ((0.0, 0.55), (0.0, 0.1), (0.32, -0.22), (0.34, 0.1))
    base = 0.25

    # Nozzle, hull and nose; a ring where these meet; fins and two portholes.
    return [
        cone(kit.dark, 0.6 * thick, 0.35 * thick, 0.25, at=(0, base - 0.08, 0)),
        lathe(kit.pattern(kit.light, kit.main, tall), hull, 0.03, at=(0, base, 0)),
        cone(kit.main, 0.86 * thick, 0.03, nose, 0.03, at=(0, base + tall + nose / 2, 0)),
        ring(kit.second, 0.88 * thick, 0.05, at=(0, base + tall, 0)),
        slab(kit.main, fin, 0.08, at=(0, base, 0.72 * thick), turn=(0, -90, 0), copies=fins),
        ring(
            kit.accent,
            0.1,
            0.035,
            at=(0, base + 0.68 * tall, 0.95 * thick),
            turn=(90, 0, 0),
            copies=2,
        ),
        ball(kit.dark, 0.1, at=(0, base + 0.68 * tall, 0.89 * thick), copies=2),
    ]


def car(kit: Kit) -> list[Part]:
    """A chassis, a cabin, four wheels, lamps; sometimes a truck."""
    wide, low, long = kit.between(0.4, 0.48), kit.between(0.26, 0.36), kit.between(0.8, 1.0)
    wheel, y = kit.between(0.2, 0.28), kit.between(0.22, 0.28) + 0.13
    cabin, truck = kit.between(0.3, 0.42), kit.chance(0.35)
    z, half = (0.5 * long, 0.35 * long) if truck else (-0.12 * long, 0.5 * long)

    # Chassis, cabin and windows; wheels and hub caps by both mirrors; lamps in front and behind.
    parts = [
        box(kit.main, (2 * wide, low, 2 * long), 0.1, at=(0, y, 0)),
        box(
            kit.main if truck else kit.second,
            (1.75 * wide, cabin, 2 * half),
            0.08,
            at=(0, y + low / 2 + cabin / 2 - 0.04, z),
        ),
        box(
            kit.dark,
            (1.8 * wide, 0.5 * cabin, 1.4 * half),
            0.04,
            at=(0, y + low / 2 + 0.55 * cabin, z),
        ),
        cone(
            kit.dark,
            wheel,
            wheel,
            0.18,
            0.04,
            at=(wide, wheel, 0.6 * long),
            turn=(0, 0, 90),
            mirror="xz",
        ),
        cone(
            kit.light,
            0.5 * wheel,
            0.4 * wheel,
            0.22,
            0.02,
            at=(wide + 0.01, wheel, 0.6 * long),
            turn=(0, 0, -90),
            mirror="xz",
        ),
        ball(kit.light, 0.09, at=(0.6 * wide, y + 0.04, long - 0.03), mirror="x"),
        ball(kit.accent, 0.07, at=(0.6 * wide, y + 0.04, -long + 0.02), mirror="x"),
    ]

    if truck:
        load = kit.pattern(kit.second, kit.accent, 1.0)
        parts.append(box(load, (1.9 * wide, 0.55, 1.1 * long), at=(0, y + 0.35, -0.42 * long)))
    return parts


def airplane(kit: Kit) -> list[Part]:
    """A fuselage, wings, a tail, engines or a propeller."""
    long, thick, span = kit.between(0.8, 1.0), kit.between(0.2, 0.27), kit.between(0.8, 1.0)
    y, sweep = thick + 0.15, kit.between(0.0, 0.35)
    wing = ((0, 0.22), (span, 0.1 - sweep), (span, -0.1 - sweep), (0, -0.22))
    rear = ((0, 0.13), (0.4, -0.08), (0.4, -0.2), (0, -0.13))
    fin = ((-0.05, 0.0), (0.3, 0.0), (0.42, 0.42), (0.2, 0.42))

    # Fuselage; wings, tail and fin, cut from flat outlines; cockpit, engines and propeller hub.
    return [
        limb(
            kit.pattern(kit.main, kit.light, 2 * long),
            0.5 * thick,
            thick,
            2 * long - thick,
            at=(0, y, 0),
            turn=(90, 0, 0),
        ),
        slab(kit.second, wing, 0.07, at=(0, y, 0.12), turn=(90, 0, 0), mirror="x"),
        slab(kit.second, rear, 0.06, at=(0, y + 0.04, -0.85 * long), turn=(90, 0, 0), mirror="x"),
        slab(kit.accent, fin, 0.06, at=(0, y + 0.05, -0.72 * long), turn=(0, 90, 0)),
        ellipsoid(kit.dark, (0.6 * thick, 0.6 * thick, 0.3), at=(0, y + 0.6 * thick, 0.45 * long)),
        limb(
            kit.accent,
            0.08,
            0.09,
            0.3,
            at=(0.5 * span, y - 0.1, 0.14 - 0.4 * sweep),
            turn=(90, 0, 0),
            mirror="x",
        ),
        ball(kit.accent, 0.1, at=(0, y, long + 0.1)),
    ]


def boat(kit: Kit) -> list[Part]:
    """A hull with a cabin and a funnel, or with a mast and a sail."""
    wide, long = kit.between(0.32, 0.42), kit.between(0.75, 0.95)
    deck = (
        (-wide, -long),
        (wide, -long),
        (1.1 * wide, 0.2 * long),
        (0, long),
        (-1.1 * wide, 0.2 * long),
    )
    parts = [
        slab(kit.main, deck, 0.3, 0.06, at=(0, 0.15, 0), turn=(90, 0, 0)),
        slab(kit.light, deck, 0.1, 0.05, at=(0, 0.31, 0), turn=(90, 0, 0)),
    ]

    # A steamer with cabin, windows and funnel.
    if kit.chance(0.5):
        return [
            *parts,
            box(kit.second, (1.3 * wide, 0.35, 0.9 * long), at=(0, 0.5, -0.25 * long)),
            box(kit.dark, (1.35 * wide, 0.12, 0.7 * long), 0.03, at=(0, 0.53, -0.25 * long)),
            cone(
                kit.pattern(kit.accent, kit.light, 0.4), 0.13, 0.12, 0.45, at=(0, 0.85, -0.3 * long)
            ),
        ]

    # Or a sailing boat with two sails and a flag.
    sail = ((0.05, 0.1), (0.6, 0.1), (0.05, 1.05))
    return [
        *parts,
        limb(kit.wood, 0.045, 0.035, 1.2, at=(0, 0.85, 0)),
        slab(
            kit.pattern(kit.second, kit.accent, 0.8),
            sail,
            0.06,
            0.02,
            at=(0, 0.4, 0),
            turn=(0, 90, 0),
        ),
        slab(kit.light, sail, 0.06, 0.02, at=(0, 0.45, 0), turn=(0, -90, 0)),
        slab(kit.accent, ((0, 0), (0.25, 0.08), (0, 0.16)), 0.04, at=(0, 1.4, 0), turn=(0, 90, 0)),
    ]


def castle_tower(kit: Kit) -> list[Part]:
    """A round tower with a door, and battlements or a pointed roof."""
    wide, tall = kit.between(0.4, 0.5), kit.between(0.9, 1.3)
    wall = kit.pattern(kit.main, kit.second, tall)
    parts = [
        cone(kit.second, 1.2 * wide, 1.15 * wide, 0.16, at=(0, 0.08, 0)),
        cone(wall, wide, 0.92 * wide, tall, at=(0, tall / 2, 0)),
        pillow(kit.wood, (0.16, 0.28, 0.1), at=(0, 0.36, wide - 0.02)),
        pillow(kit.dark, (0.09, 0.13, 0.08), at=(0, 0.72 * tall, 0.93 * wide), copies=4),
        cone(kit.second, 1.15 * wide, 1.2 * wide, 0.16, at=(0, tall, 0)),
    ]

    # Battlements around the top, or a roof.
    if kit.chance(0.5):
        block = box(
            kit.second, (0.2, 0.22, 0.14), at=(0, tall + 0.15, wide), copies=kit.whole(5, 8)
        )
        return [*parts, block]
    roof = kit.between(0.6, 0.9)
    return [
        *parts,
        cone(kit.accent, 1.3 * wide, 0.02, roof, at=(0, tall + 0.08 + roof / 2, 0)),
        ball(kit.light, 0.08, at=(0, tall + roof + 0.1, 0)),
    ]


def house(kit: Kit) -> list[Part]:
    """Walls, a gable roof, a door, windows, maybe a chimney."""
    wide, tall, deep = kit.between(0.5, 0.65), kit.between(0.5, 0.75), kit.between(0.5, 0.8)
    rise, eaves = kit.between(0.35, 0.6), 0.12
    gable = ((-wide - eaves, 0.0), (wide + eaves, 0.0), (0.0, rise))
    parts = [
        box(
            kit.light if kit.chance(0.4) else kit.main,
            (2 * wide, tall, 2 * deep),
            at=(0, tall / 2, 0),
        ),
        slab(kit.second, gable, 2 * deep + 0.15, 0.04, at=(0, tall, 0)),
        box(kit.wood, (0.26, 0.42, 0.06), 0.02, at=(0, 0.21, deep)),
        box(kit.dark, (0.06, 0.22, 0.26), 0.02, at=(wide, 0.6 * tall, 0.45 * deep), mirror="xz"),
        box(kit.dark, (0.2, 0.22, 0.06), 0.02, at=(0.6 * wide, 0.6 * tall, deep), mirror="xz"),
        box(kit.wood, (2.2 * wide, 0.08, 2.2 * deep), 0.02, at=(0, 0.0, 0)),
    ]
    if kit.chance(0.6):
        stack = box(kit.accent, (0.18, 0.6, 0.18), at=(0.5 * wide, tall + 0.7 * rise, -0.4 * deep))
        parts.append(stack)
    return parts
