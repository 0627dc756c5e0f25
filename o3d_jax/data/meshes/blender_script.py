"""Runs inside a Python that has bpy: draws the frames that a task file describes.

    python blender_script.py TASK.json

It imports nothing of this project; `task_of` in blender.py says what a task holds.
"""

import json
import math
import sys
from pathlib import Path

import bpy  # pyright: ignore[reportMissingImports]
from mathutils import Matrix, Vector  # pyright: ignore[reportMissingImports]

WORLD_LIGHT = 0.6
"""Strength of the white surroundings."""
SUN_LIGHT, SUN_ANGLE = 1.6, 30.0
"""The main light's strength in W / m^2, and its width in degrees, which makes soft shadows."""
SUN_FROM = (0.5, 0.6, 0.62)
"""Direction of the main light, in the y-up world."""
TO_Z_UP = Matrix(((1, 0, 0, 0), (0, 0, -1, 0), (0, 1, 0, 0), (0, 0, 0, 1)))
"""The turn from our y-up world to Blender's z-up one; its glTF importer turns models likewise."""


def load(task: dict) -> list:
    """Imports the model; returns its meshes."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    path, kind = task["model"], Path(task["model"]).suffix.lower()
    if kind in (".glb", ".gltf"):
        bpy.ops.import_scene.gltf(filepath=path)
    elif kind == ".obj":
        bpy.ops.wm.obj_import(filepath=path, forward_axis="NEGATIVE_Z", up_axis="Y")
    else:
        bpy.ops.wm.ply_import(filepath=path, forward_axis="NEGATIVE_Z", up_axis="Y")
    return [thing for thing in bpy.context.scene.objects if thing.type == "MESH"]


def set_materials(meshes: list) -> None:
    """Shows the colors of vertices where meshes have no material, as in PLY files."""
    for mesh in meshes:
        if mesh.data.materials or not mesh.data.color_attributes:
            continue
        material = bpy.data.materials.new("vertex colors")
        material.use_nodes = True
        tree = material.node_tree
        source = tree.nodes.new("ShaderNodeVertexColor")
        source.layer_name = mesh.data.color_attributes[0].name
        target = next(node for node in tree.nodes if node.type == "BSDF_PRINCIPLED")
        tree.links.new(source.outputs["Color"], target.inputs["Base Color"])
        mesh.data.materials.append(material)


def move_into_view(meshes: list, up: str, side: float, ball: float) -> None:
    """Turns the model upright, moves its box's center to the origin, scales as `meshes.fit`."""
    turn = TO_Z_UP.inverted() if up == "z" else Matrix.Identity(4)
    graph = bpy.context.evaluated_depsgraph_get()
    points = []
    for mesh in meshes:
        evaluated = mesh.evaluated_get(graph)
        points += [turn @ evaluated.matrix_world @ v.co for v in evaluated.to_mesh().vertices]
    if not points:
        sys.exit("it has no triangles to draw")
    low = Vector([min(p[i] for p in points) for i in range(3)])
    high = Vector([max(p[i] for p in points) for i in range(3)])
    middle = (low + high) / 2
    farthest = max((p - middle).length for p in points)
    scale = min(side / max(high - low), ball / farthest)
    move = Matrix.Scale(scale, 4) @ Matrix.Translation(-middle) @ turn
    for thing in bpy.context.scene.objects:
        if thing.parent is None:
            thing.matrix_world = move @ thing.matrix_world


def add_lights() -> None:
    """Adds white surroundings and a soft sun."""
    world = bpy.data.worlds.new("world")
    world.use_nodes = True
    world.node_tree.nodes["Background"].inputs["Color"].default_value = (1, 1, 1, 1)
    world.node_tree.nodes["Background"].inputs["Strength"].default_value = WORLD_LIGHT
    bpy.context.scene.world = world
    sun = bpy.data.lights.new("sun", "SUN")
    sun.energy, sun.angle = SUN_LIGHT, math.radians(SUN_ANGLE)
    lamp = bpy.data.objects.new("sun", sun)
    toward = TO_Z_UP.to_3x3() @ Vector(SUN_FROM)
    lamp.rotation_euler = toward.to_track_quat("Z", "Y").to_euler()
    bpy.context.scene.collection.objects.link(lamp)


def draw_frames(task: dict) -> None:
    """Renders all poses."""
    scene = bpy.context.scene
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    scene.collection.objects.link(camera)
    scene.camera = camera
    camera.data.angle = math.radians(task["fov"])
    camera.data.clip_start = 0.01
    scene.render.engine = "CYCLES"
    scene.cycles.samples, scene.cycles.seed = task["samples"], 0
    scene.cycles.use_denoising = True
    scene.render.resolution_x = scene.render.resolution_y = task["size"]
    scene.render.resolution_percentage = 100
    scene.render.film_transparent = True
    scene.view_settings.view_transform = "Standard"
    scene.render.image_settings.file_format = "PNG"
    scene.render.image_settings.color_mode = "RGBA"
    for number, pose in enumerate(task["poses"]):
        camera.matrix_world = TO_Z_UP @ Matrix(pose)
        scene.render.filepath = str(Path(task["out"]) / f"{number:05d}.png")
        bpy.ops.render.render(write_still=True)


def main() -> None:
    """Does the task of the file that is named on the command line."""
    task = json.loads(Path(sys.argv[1]).read_text())
    meshes = load(task)
    set_materials(meshes)
    move_into_view(meshes, task["up"], task["side"], task["ball"])
    add_lights()
    draw_frames(task)


if __name__ == "__main__":
    main()
