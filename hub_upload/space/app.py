"""
A page on which GLIPv2 detects, grounds, segments, answers and captions.

    GLIPV2_MODEL=FOLDER python hub_upload/space/app.py

The page begins with the first model that the README beside this file names, or with what GLIPV2_MODEL says: a folder,
a name on the Hub, or, where the package is installed, the name of a released checkpoint such as glip-tiny. Visitors
may choose another one of the README or, where the package is installed, a released one. A model on the Hub comes with
its code, so the package need not be installed.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from huggingface_hub.repocard import metadata_load
from PIL import Image
from safetensors import safe_open
from skimage import data
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForInstanceSegmentation,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
    pipeline,
)
from transformers.utils import cached_file

try:
    from transformers_glipv2.conversion.released import RELEASED, resolve_model
    from transformers_glipv2.inference.drawing import DrawnObject, draw
except ImportError:  # on the Hub the file is beside this one
    from drawing import DrawnObject, draw

    RELEASED, resolve_model = {}, str

TASK = "zero-shot-object-detection"
HEADS = {
    "mask_head": AutoModelForInstanceSegmentation,
    "answer_head": AutoModelForVisualQuestionAnswering,
    "caption_head": AutoModelForImageTextToText,
}
HEAD_OF_TASK = {"segment": "mask_head", "ask": "answer_head", "caption": "caption_head"}
TABLE = ["what", "score", "x1", "y1", "x2", "y2"]
# To begin with; labels, where a model was not fine-tuned for classes of its own.
THRESHOLD = 0.4
LABELS = "cat, cup, spoon, person"
MAX_BOXES = 30
# As many as a minute on a small machine allows.
MAX_LABELS = 200
# Models in memory; the one that was not used for longest makes room.
MAX_MODELS = 2
LIMITS = """
**What to expect.** Boxes, masks, answers and captions can be wrong, and what is not in the image may get a box all the
same. Scores rank boxes; they are no probabilities, so try other limits. Write in English, about what can be seen. Not
for decisions about people, nor where a missed or a wrong box does harm.
"""
NANO_LIMITS = """
This is a small model for trying things out. It was trained briefly on few images, misses and confuses many objects of
ordinary photographs, and writes poor captions of them.
"""

# A drawing, a table, and a sentence.
Shown = tuple[Image.Image, list[list[Any]], str]


class Demo:
    """The models of one checkpoint, and what the tabs do with them."""

    def __init__(self, name: str):
        self.name = name
        name = resolve_model(name)
        with safe_open(cached_file(name, "model.safetensors"), framework="pt") as weights:
            parts = {tensor.split(".")[0] for tensor in weights.keys()}  # noqa: SIM118
        trust = {"trust_remote_code": True}
        self.processor = AutoProcessor.from_pretrained(name, **trust)
        # By name, not around a model: only so does transformers take the code of the checkpoint too.
        found = pipeline(TASK, model=name, device="cpu", **trust).detector
        self.processor.image_processor.allow_urls = False
        # The other models share the detector's weights in the checkpoint; only their heads are further ones in memory.
        self.models = {"detection_head": found.model}
        for head, auto_class in HEADS.items():
            if head in parts:
                model = auto_class.from_pretrained(name, **trust).eval()
                model.model, model.detection_head = found.model.model, found.model.detection_head
                self.models[head] = model
        self.detectors = {
            head: type(found)(model, self.processor, max_detections=MAX_BOXES, progress=False)
            for head, model in self.models.items()
        }

    def has(self, head: str) -> bool:
        return head in self.models

    @property
    def own_labels(self) -> str:
        """The classes that the model was fine-tuned for, as [`split`] reads them; empty where there are none."""
        names = getattr(self.models["detection_head"].config, "labels", None) or ()
        return ", ".join(name.replace(",", "\\,") for name in names)

    def detect(self, image: Image.Image, labels: str, threshold: float) -> Shown:
        """Boxes of labels, which commas separate."""
        (found,) = self.detectors["detection_head"].detect(image, split(labels), threshold=threshold)
        columns = (found["text_labels"], found["scores"].tolist(), found["boxes"].tolist(), found["labels"].tolist())
        boxes = [(name, score, box, None, label) for name, score, box, label in zip(*columns, strict=True)]
        return show(image, boxes, threshold)

    def ground(self, image: Image.Image, sentence: str, threshold: float) -> Shown:
        """Boxes of the noun phrases of a sentence."""
        (phrases,) = self.detectors["detection_head"].ground(image, sentence, top_k=3, threshold=threshold)
        return show_phrases(image, phrases, threshold)

    def segment(self, image: Image.Image, labels: str, threshold: float) -> Shown:
        """Masks of labels, which commas separate."""
        options = {"threshold": threshold, "return_rle": False}
        (found,) = self.detectors["mask_head"].segment(image, split(labels), **options)
        columns = (found["text_labels"], found["scores"].tolist(), found["boxes"].tolist(), found["masks"].numpy())
        return show(image, [(*values, None) for values in zip(*columns, strict=True)], threshold)

    def ask(self, image: Image.Image, question: str, threshold: float) -> tuple[Any, ...]:
        """The five highest-scoring answers, and boxes of what the question names."""
        options = {"boxes_per_phrase": 3, "threshold": threshold}
        (found,) = self.detectors["answer_head"].answer(image, question, top_k=5, **options)
        answers = {answer["answer"]: answer["score"] for answer in found["answers"]}
        return answers, *show_phrases(image, found["phrases"], threshold)

    def caption(self, image: Image.Image, beginning: str, threshold: float) -> tuple[Any, ...]:
        """A caption, from the given beginning where there is one, and boxes of what it names."""
        generation = {"num_beams": 3, "max_new_tokens": 30}
        options = {"boxes_per_phrase": 3, "threshold": threshold}
        (found,) = self.detectors["caption_head"].caption(image, beginning.strip(), generation, **options)
        return found["caption"] or "(nothing)", *show_phrases(image, found["phrases"], threshold)


class Models:
    """
    The models that a page offers, loaded when they are first asked for.

    Args:
        first (`Demo`): the one that the page begins with.
        names (`Sequence[str]`): of the others.
    """

    def __init__(self, first: Demo, names: Sequence[str] = ()):
        self.names = list(dict.fromkeys([first.name, *names]))
        self.loaded = {first.name: first}

    def get(self, name: str) -> Demo:
        """A model by its name; raises ValueError for one that is not offered, and as its loading does."""
        if name not in self.names:
            raise ValueError(f"{name!r} is not offered here; choose one of {', '.join(self.names)}.")
        demo = self.loaded.pop(name, None)
        if demo is None:
            while len(self.loaded) >= MAX_MODELS:
                del self.loaded[next(iter(self.loaded))]
            demo = Demo(name)
        self.loaded[name] = demo
        return demo


def about(name: str) -> str:
    """What to expect of a model."""
    if name in RELEASED:
        model = RELEASED[name]
        how = "without training on COCO" if model.is_zero_shot else "trained on COCO too"
        text = f"`{name}` of GLIP: {model.coco_ap:g} AP on COCO val2017 ({how}), {model.parameters / 1e6:.0f} million "
        text += f"parameters, trained on {model.training_data}. It finds boxes only."
    else:
        text = NANO_LIMITS if name.endswith("glipv2-nano") else ""
    return f"{text.strip()}\n{LIMITS}"


def missing_head(demo: Demo, head: str) -> str:
    """What a tab says whose head a model does not have; empty where it has it."""
    needs = {
        "mask_head": "This checkpoint has no mask head, so it segments nothing.",
        "answer_head": "This checkpoint has no answer head, so it answers no questions.",
        "caption_head": "This checkpoint has no caption head, so it writes no captions.",
    }
    return "" if demo.has(head) else needs[head]


def show_phrases(image: Image.Image, phrases: list[dict[str, Any]], threshold: float) -> Shown:
    """As [`show`], of grounded phrases."""
    if not phrases:
        return image, [], "The text names nothing to look for."
    return show(image, phrase_boxes(phrases), threshold)


def phrase_boxes(phrases: list[dict[str, Any]]) -> list[tuple]:
    """(name, score, box, no mask, group) of all boxes of phrases, the highest-scoring first."""
    found = [
        (phrase["phrase"], score, box, None, index)
        for index, phrase in enumerate(phrases)
        for score, box in zip(phrase["scores"].tolist(), phrase["boxes"].tolist(), strict=True)
    ]
    return sorted(found, key=lambda values: -values[1])


def split(labels: str) -> list[str]:
    """Labels between commas, each once; a comma in a label is written `\\,`."""
    names = dict.fromkeys(label.replace("\\,", ",").strip() for label in re.split(r"(?<!\\),", labels))
    return [name for name in names if name]


def show(image: Image.Image, found: list[tuple], threshold: float) -> Shown:
    """
    The drawing, the table and a sentence about (name, score, box, mask or `None`, group or `None`) of each object, the
    highest-scoring first.
    """
    objects = [DrawnObject(f"{name} {score:.2f}", box, mask, group) for name, score, box, mask, group in found]
    table = [[name, round(score, 3), *(round(side) for side in box)] for name, score, box, _, _ in found]
    sentence = f"{len(found)} {'box' if len(found) == 1 else 'boxes'}."
    if not found:
        sentence = f"Nothing has a score of {threshold:g} or more. Lower the score, or use other words."
    elif len(found) >= MAX_BOXES:
        sentence = f"The {MAX_BOXES} boxes with the highest scores."
    return draw(image, objects), table, sentence


def checked(models: Models, task: str) -> Callable[..., Any]:
    """A method of `Demo` as the page calls it: what is missing, and what is wrong with the input, is said there."""

    def call(image: Image.Image | None, text: str, *options: Any) -> Any:
        *options, name = options
        if image is None:
            raise gr.Error("Choose an image first.")
        if not isinstance(text, str) or (task != "caption" and not split(text)):
            raise gr.Error("Write what to look for first.")
        if task in ("detect", "segment") and len(split(text)) > MAX_LABELS:
            raise gr.Error(f"These are {len(split(text))} labels; look for {MAX_LABELS} at a time.")
        with errors_said():
            demo = models.get(name)
            head = HEAD_OF_TASK.get(task)
            if head and not demo.has(head):
                raise ValueError(missing_head(demo, head))
            return getattr(demo, task)(demo.processor.image_processor.open_image(image), text, *options)

    return call


@contextmanager
def errors_said() -> Iterator[None]:
    """Errors of the input, and of a model that cannot be loaded, as sentences on the page."""
    try:
        yield
    except (TypeError, ValueError, OSError) as error:
        raise gr.Error(str(error)) from error
    except MemoryError as error:
        raise gr.Error("This image is too large for the machine; choose a smaller one.") from error


def guarded(component: gr.components.Component, sentence: str) -> gr.components.Component:
    """A component that answers a value which it cannot read with a sentence instead of "Error"."""
    read = component.preprocess

    def preprocess(payload: Any) -> Any:
        try:
            return read(payload)
        except Exception as error:
            raise gr.Error(sentence) from error

    component.preprocess = preprocess
    return component


def labels_box(demo: Demo, **options: Any) -> gr.Textbox:
    return gr.Textbox(demo.own_labels or LABELS, label="Labels, comma-separated", **options)


def threshold_slider() -> gr.components.Component:
    slider = gr.Slider(minimum=0.0, maximum=1.0, value=THRESHOLD, step=0.01, label="Lowest score of a box")
    return guarded(slider, "The score of a box is a number from 0 to 1.")


def found_outputs(label: str, **options: Any) -> list[gr.components.Component]:
    """Where the drawing, the table and the sentence of [`show`] go; the sentence is above, where it is seen."""
    sentence = gr.Markdown()
    # A label on the image would cover names in its corner.
    options |= {"label": label, "show_label": False, "buttons": ["download", "fullscreen"]}
    return [gr.Image(format="png", **options), gr.Dataframe(headers=TABLE), sentence]


def build(models: Models) -> gr.Blocks:
    """The page."""
    # One call at a time: the machine is small, and tokenizers do not like two threads.
    queue = {"concurrency_id": "model", "concurrency_limit": 1}
    demo = models.get(models.names[0])
    parts: dict[str, tuple[gr.Markdown, gr.Column]] = {}
    with gr.Blocks(title="GLIPv2") as page:
        gr.Markdown("# GLIPv2\nFinds what a text names in an image.")
        with gr.Row():
            with gr.Column(scale=2):
                choices = [(Path(name).name, name) for name in models.names]
                name = gr.Dropdown(choices, value=demo.name, label="Model", elem_id="model")
                note = gr.Markdown(about(demo.name))
                image = gr.Image(type="pil", label="Image", elem_id="image")
                guarded(image, "This file is no image that can be read; choose a PNG or JPEG file.")
                samples = [data.chelsea(), data.coffee(), data.astronaut()]
                gr.Examples([[Image.fromarray(sample)] for sample in samples], image, label="Images to try (CC0)")

            def tab(
                task: str, text: gr.Textbox, title: str, label: str, *more: gr.components.Component, **options: Any
            ):
                """Controls and results of a task; `more` results come first."""
                limit = threshold_slider()
                button = gr.Button(title, variant="primary", elem_id=task)
                for component in more:
                    component.render()
                outputs = [*more, *found_outputs(label, **options)]
                button.click(checked(models, task), [image, text, limit, name], outputs, api_name=task, **queue)

            @contextmanager
            def needs(task: str) -> Iterator[None]:
                """A column that is there where the model has the task's head, and a sentence where it has not."""
                sentence = missing_head(demo, HEAD_OF_TASK[task])
                told = gr.Markdown(sentence)
                with gr.Column(visible=not sentence) as column:
                    yield
                parts[HEAD_OF_TASK[task]] = (told, column)

            with gr.Column(scale=3), gr.Tabs():
                with gr.Tab("Detect"):
                    labels = labels_box(demo, elem_id="labels")
                    tab("detect", labels, "Detect", "Boxes", elem_id="detected")
                with gr.Tab("Ground"):
                    sentence = gr.Textbox("a cup of coffee beside a spoon", label="Sentence")
                    tab("ground", sentence, "Ground", "Boxes of its phrases")
                with gr.Tab("Segment"), needs("segment"):
                    masked = labels_box(demo)
                    tab("segment", masked, "Segment", "Masks")
                with gr.Tab("Ask"), needs("ask"):
                    question = gr.Textbox("how many spoons are there?", label="Question")
                    answers = gr.Label(label="Answers", render=False)
                    tab("ask", question, "Ask", "What it names", answers)
                with gr.Tab("Caption"), needs("caption"):
                    beginning = gr.Textbox("", label="Beginning (may be empty)")
                    caption = gr.Textbox(label="Caption", render=False)
                    tab("caption", beginning, "Caption", "What it names", caption)

        def choose(name: str) -> list[Any]:
            with errors_said():
                chosen = models.get(name)
            updates: list[Any] = [about(name)]
            for head in parts:
                sentence = missing_head(chosen, head)
                updates += [sentence, gr.Column(visible=not sentence)]
            # Labels that someone wrote stay, unless the model has classes of its own.
            return updates + [chosen.own_labels or gr.skip()] * 2

        shown = [component for pair in parts.values() for component in pair]
        name.change(choose, name, [note, *shown, labels, masked], api_name="choose", **queue)
    return page


def named_models() -> list[str]:
    """The models of the README."""
    return metadata_load(Path(__file__).with_name("README.md"))["models"]


def model_name() -> str:
    return os.environ.get("GLIPV2_MODEL") or named_models()[0]


def offered() -> Models:
    """What the page offers: the model that it begins with, those of the README, and the released ones."""
    return Models(Demo(model_name()), [*named_models(), *RELEASED])


if __name__ == "__main__":
    build(offered()).launch()
