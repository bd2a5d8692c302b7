"""Requests about pictures of simple objects: to count, find, mark, restyle and describe them.

The scenes are CLEVR's, rendered here, so counts, boxes and attributes are known exactly. See
`gta_queries` for requests about text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

from fastmpi.data.camera import CLEVR_CAMERA, Camera
from fastmpi.data.layouts import sample_scene
from fastmpi.data.raycast import outline
from fastmpi.data.renderer import render_scene
from fastmpi.data.scenes import Scene, SceneObject
from fastmpi.policies.clevr_text import describe
from fastmpi.policies.gta.draft import Draft, Maker, python_block
from fastmpi.policies.gta.pictures import Box, bbox_text

SIZE = (400, 300)
NUM_OBJECTS = (3, 6)


class Unsuitable(Exception):
    """A scene does not allow the request; another one has to be drawn."""


STYLES = (
    "a watercolor painting", "a pencil drawing", "a pixel art game", "a stained glass window",
    "an oil painting", "a comic", "a wooden toy set", "a snowy winter day", "a night with neon",
)  # fmt: skip
PLACES = ("on a beach", "on a moon base", "in a kitchen", "in a forest", "in a museum hall")
COUNTED = "The objects in the image have to be counted."
FOUND = "The object has to be found in the image first."
# Which attributes name an object, tried until only one object of the scene has these values.
NAMED_BY = (("color", "shape"), ("size", "shape"), ("size", "color", "shape"))


def count_one(draft: Draft) -> None:
    scene = _scene(draft)
    image = draft.show(scene)
    kind, number = _kind(draft, scene)
    draft.ask(f"How many {kind}s are there?", f"Please count the {kind}s in the picture.")
    _count(draft, image, kind, number)


def count_and_price(draft: Draft) -> None:
    scene = _scene(draft)
    image = draft.show(scene)
    kind, number = _kind(draft, scene)
    price, days = f"{draft.between(4, 60) * 0.25:.2f}", draft.between(2, 9)
    draft.ask(
        f"Renting a {kind} costs {price} a day. What do all {kind}s here cost for {days} days?",
        f"If each {kind} is {price} a day, what is the rent of all of them for {days} days?",
    )
    _count(draft, image, kind, number)
    value = round(number * float(price) * days, 2)
    thought = "The number is known now, and the rent has to be calculated."
    expression = f"{number} * {price} * {days}"
    draft.call("Calculator", thought, str(value), expression=expression)


def counts_compared(draft: Draft) -> None:
    scenes = [_scene(draft) for _ in range(2)]
    images = [draft.show(scene) for scene in scenes]
    kind, _ = _kind(draft, scenes[0])
    draft.ask(
        f"How many {kind}s do the two pictures show together?",
        f"Taking both pictures, how many {kind}s are there in all?",
    )
    several = "There are several images, so each of them is described first."
    for image, scene in zip(images, scenes, strict=True):
        draft.call("ImageDescription", several, _caption(scene), image=image)
    numbers = [_number(scene, kind) for scene in scenes]
    for image, number in zip(images, numbers, strict=True):
        _count(draft, image, kind, number)
    thought = "Both numbers are known now and have to be added."
    expression = " + ".join(map(str, numbers))
    draft.call("Calculator", thought, str(sum(numbers)), expression=expression)


def count_and_write(draft: Draft) -> None:
    scene = _scene(draft)
    image = draft.show(scene)
    kind, number = _kind(draft, scene)
    where, position = draft.one((("top left", "lt"), ("bottom right", "rb"), ("top right", "rt")))
    color = draft.one(("black", "white", "blue", "red"))
    draft.ask(
        f"Count the {kind}s and write the number in {color} into the {where} corner.",
        f"Write how many {kind}s there are into the {where} corner of the picture, in {color}.",
    )
    _count(draft, image, kind, number)
    thought = "The number is known now and can be written on the image."
    words = str(number)
    draft.make("AddText", thought, image=image, text=words, position=position, color=color)


def count_and_plot(draft: Draft) -> None:
    scene = _scene(draft)
    image = draft.show(scene)
    shapes = draft.some(("cube", "sphere", "cylinder"), 2)
    draft.ask(
        f"Make a bar chart of how many {shapes[0]}s and {shapes[1]}s there are.",
        f"Draw the numbers of {shapes[0]}s and {shapes[1]}s in the picture as a bar chart.",
    )
    numbers = [_number(scene, shape) for shape in shapes]
    for shape, number in zip(shapes, numbers, strict=True):
        _count(draft, image, shape, number)
    command = python_block(
        "import matplotlib.pyplot as plt",
        "",
        "def solution():",
        "    figure, axes = plt.subplots()",
        f"    axes.bar({[f'{shape}s' for shape in shapes]}, {numbers})",
        "    return figure",
    )
    draft.make("Plot", "Both numbers are known now and can be drawn.", command=command)


def attribute_told(draft: Draft) -> None:
    scene = _scene(draft)
    image = draft.show(scene)
    item, phrase, used = _named(draft, scene)
    attribute = draft.one([name for name in ("color", "size", "material") if name not in used])
    draft.ask(
        f"What {attribute} does the {phrase} have?", f"Tell me the {attribute} of the {phrase}."
    )
    box = _find(draft, image, scene, item, phrase)
    thought = "The region is known now, and its attribute can be described."
    told = f"The {item.shape} is {getattr(item, attribute)}."
    region = {"bbox": bbox_text(box), "attribute": attribute}
    draft.call("RegionAttributeDescription", thought, told, image=image, **region)


def object_boxed(draft: Draft) -> None:
    scene = _scene(draft)
    image = draft.show(scene)
    item, phrase, _ = _named(draft, scene)
    label = draft.one(("target", "this one", "lost", "sold")) + f" {draft.between(1, 99)}"
    draft.ask(
        f'Draw a box around the {phrase} and label it "{label}".',
        f'Mark the {phrase} with a box that says "{label}".',
    )
    box = _find(draft, image, scene, item, phrase)
    thought = "The place is known now, and the box can be drawn."
    draft.make("DrawBox", thought, image=image, bbox=bbox_text(box), annotation=label)


def object_boxed_and_titled(draft: Draft) -> None:
    scene = _scene(draft)
    image = draft.show(scene)
    item, phrase, _ = _named(draft, scene)
    title = f"{draft.name()} {draft.between(2, 98)}"
    draft.ask(
        f'Put a box around the {phrase}, then write "{title}" in the middle at the top, in blue.',
        f'Box the {phrase}, and give the result the title "{title}" (blue, top middle).',
    )
    box = _find(draft, image, scene, item, phrase)
    boxed = draft.make(
        "DrawBox",
        "The place is known now, and the box can be drawn.",
        _boxed(scene, box),
        image=image,
        bbox=bbox_text(box),
    )
    thought = "The box is drawn, and the title goes on the new image."
    draft.make("AddText", thought, image=boxed, text=title, position="mt", color="blue")


def all_boxed(draft: Draft) -> None:
    """`top1` is false: every object of a kind is asked for."""
    scene = _scene(draft)
    image = draft.show(scene)
    kind, _ = _kind(draft, scene)
    draft.ask(f"Where are all the {kind}s?", f"Give me the places of all {kind}s, in pixels.")
    boxes = [_box(scene, item) for item in scene.objects if _is(item, kind)]
    returned = "\n".join(f"{bbox_text(box)}, score {draft.between(70, 98)}" for box in boxes)
    thought = "All objects of this kind are asked for, not only the best one."
    draft.call("TextToBbox", thought, returned, image=image, text=kind, top1=False)


def restyled(draft: Draft) -> None:
    image = draft.show(_scene(draft))
    style = draft.one(STYLES)
    draft.ask(f"Make this look like {style}.", f"I would like this picture as {style}.")
    thought = "The image itself is to be changed."
    draft.make("ImageStylization", thought, image=image, instruction=f"Make it look like {style}.")


def imagined(draft: Draft) -> None:
    scene = _scene(draft)
    image = draft.show(scene)
    place = draft.one(PLACES)
    draft.ask(
        f"Make a new picture with the same things, but {place}.",
        f"I need a new image of what is here, this time {place}.",
    )
    thought = "What the image shows has to be described first."
    draft.call("ImageDescription", thought, _caption(scene), image=image)
    kinds = dict.fromkeys(f"{item.color} {item.shape}" for item in scene.objects)
    keywords = ", ".join([*kinds, place.split(" ", 1)[1]])
    draft.make(
        "TextToImage", "The things are known now; a new image is asked for.", keywords=keywords
    )


def looked_up(draft: Draft) -> None:
    scene = _scene(draft)
    image = draft.show(scene)
    goal = draft.one(("photograph", "paint", "build from clay", "model in 3D", "light"))
    draft.ask(
        f"Find me some guides on how to {goal} things like these.",
        f"Where can I read how to {goal} such objects?",
    )
    thought = "What the image shows has to be described first."
    draft.call("ImageDescription", thought, _caption(scene), image=image)
    shapes = " and ".join(dict.fromkeys(f"{item.material} {item.shape}s" for item in scene.objects))
    draft.call(
        "GoogleSearch",
        "The question is open-ended, so four results are wanted.",
        "\n".join(f"{i} - {draft.name()} guide {i}" for i in range(1, 5)),
        query=f"how to {goal} {shapes}",
        k=4,
    )


SCENE_MAKERS: Sequence[Maker] = (
    count_one, count_and_price, counts_compared, count_and_write, count_and_plot,
    attribute_told, object_boxed, object_boxed_and_titled, all_boxed, restyled, imagined, looked_up,
)  # fmt: skip


def _scene(draft: Draft) -> Scene:
    return sample_scene(draft.rng, draft.between(*NUM_OBJECTS), size=SIZE)


def _caption(scene: Scene) -> str:
    return f"The image shows {describe(scene.objects)} on a gray ground."


def _kind(draft: Draft, scene: Scene) -> tuple[str, int]:
    """A kind of object in words, such as "red cube", and how many there are: at least one."""
    item = draft.one(scene.objects)
    other = getattr(item, draft.one(("color", "size", "material")))
    kind = draft.one((item.shape, f"{other} {item.shape}"))
    return kind, _number(scene, kind)


def _number(scene: Scene, kind: str) -> int:
    return sum(_is(item, kind) for item in scene.objects)


def _is(item: SceneObject, kind: str) -> bool:
    return set(kind.split()) <= {item.shape, item.color, item.size, item.material}


def _named(draft: Draft, scene: Scene) -> tuple[SceneObject, str, tuple[str, ...]]:
    """An object, words that fit no other object, and the attributes that they use."""
    for used in NAMED_BY:
        for item in draft.some(scene.objects, len(scene.objects)):
            phrase = " ".join(getattr(item, name) for name in used)
            if _number(scene, phrase) == 1:
                return item, phrase, used
    raise Unsuitable("every object has a twin")


def _find(draft: Draft, image: str, scene: Scene, item: SceneObject, phrase: str) -> Box:
    box = _box(scene, item)
    returned = f"{bbox_text(box)}, score {draft.between(80, 99)}"
    draft.call("TextToBbox", FOUND, returned, image=image, text=phrase, top1=True)
    return box


def _count(draft: Draft, image: str, kind: str, number: int) -> None:
    draft.call("CountGivenObject", COUNTED, str(number), image=image, text=kind)


def _box(scene: Scene, item: SceneObject) -> Box:
    """The object's box in whole pixels, within the picture."""
    camera = Camera.from_json(scene.camera) if scene.camera else CLEVR_CAMERA
    left, top, right, bottom = (round(value) for value in outline(item, camera, SIZE))
    return max(0, left), max(0, top), min(SIZE[0], right), min(SIZE[1], bottom)


def _boxed(scene: Scene, box: Box) -> Callable[[], Image.Image]:
    def draw() -> Image.Image:
        picture = render_scene(scene)
        ImageDraw.Draw(picture).rectangle(box, outline=(255, 0, 0), width=3)
        return picture

    return draw
