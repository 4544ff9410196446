"""
A page on which GLIPv2 detects, grounds, segments, answers and captions.

    GLIPV2_MODEL=FOLDER python hub_upload/space/app.py

The model is the first one that the README beside this file names, or what GLIPV2_MODEL says: a folder, a name on the
Hub, or, where the package is installed, the name of a released checkpoint such as glip-tiny. A model on the Hub comes
with its code, so the package need not be installed.
"""

import os
from collections.abc import Callable
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
    from transformers_glipv2 import resolve_model
    from transformers_glipv2.inference.drawing import DrawnObject, draw
except ImportError:  # on the Hub the file is beside this one
    from drawing import DrawnObject, draw

    resolve_model = str

TASK = "zero-shot-object-detection"
HEADS = {
    "mask_head": AutoModelForInstanceSegmentation,
    "answer_head": AutoModelForVisualQuestionAnswering,
    "caption_head": AutoModelForImageTextToText,
}
TABLE = ["what", "score", "x1", "y1", "x2", "y2"]
MAX_BOXES = 30
# As many as a minute on a small machine allows.
MAX_LABELS = 200

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

    def detect(self, image: Image.Image, labels: str, threshold: float) -> Shown:
        """Boxes of labels, which commas separate."""
        (found,) = self.detectors["detection_head"].detect(image, split(labels), threshold=threshold)
        columns = (found["text_labels"], found["scores"].tolist(), found["boxes"].tolist(), found["labels"].tolist())
        boxes = [(name, score, box, None, label) for name, score, box, label in zip(*columns, strict=True)]
        return show(image, boxes, threshold)

    def ground(self, image: Image.Image, sentence: str, threshold: float) -> Shown:
        """Boxes of the noun phrases of a sentence."""
        (phrases,) = self.detectors["detection_head"].ground(image, sentence, top_k=3, threshold=threshold)
        return show(image, phrase_boxes(phrases), threshold)

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
        return answers, *show(image, phrase_boxes(found["phrases"]), threshold)

    def caption(self, image: Image.Image, beginning: str) -> str:
        """A caption, from the given beginning where there is one."""
        generation = {"num_beams": 3, "max_new_tokens": 30}
        (found,) = self.detectors["caption_head"].caption(image, beginning.strip(), generation)
        return found["caption"]


def phrase_boxes(phrases: list[dict[str, Any]]) -> list[tuple]:
    """(name, score, box, no mask, group) of all boxes of phrases, the highest-scoring first."""
    found = [
        (phrase["phrase"], score, box, None, index)
        for index, phrase in enumerate(phrases)
        for score, box in zip(phrase["scores"].tolist(), phrase["boxes"].tolist(), strict=True)
    ]
    return sorted(found, key=lambda values: -values[1])


def split(labels: str) -> list[str]:
    """Labels between commas, each once."""
    names = dict.fromkeys(label.strip() for label in labels.split(","))
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


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A method of `Demo` as the page calls it: what is missing, and what is wrong with the input, is said there."""

    def call(image: Image.Image | None, text: str, *options: Any) -> Any:
        if image is None:
            raise gr.Error("Choose an image first.")
        if not isinstance(text, str) or (function.__name__ != "caption" and not split(text)):
            raise gr.Error("Write what to look for first.")
        if function.__name__ in ("detect", "segment") and len(split(text)) > MAX_LABELS:
            raise gr.Error(f"These are {len(split(text))} labels; look for {MAX_LABELS} at a time.")
        try:
            return function(function.__self__.processor.image_processor.open_image(image), text, *options)
        except (TypeError, ValueError, OSError) as error:
            raise gr.Error(str(error)) from error
        except MemoryError as error:
            raise gr.Error("This image is too large for the machine; choose a smaller one.") from error

    return call


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


def threshold_slider() -> gr.components.Component:
    slider = gr.Slider(minimum=0.0, maximum=1.0, value=0.3, step=0.01, label="Score of a box at least")
    return guarded(slider, "The score of a box is a number from 0 to 1.")


def found_outputs(label: str, **options: Any) -> list[gr.components.Component]:
    """Where the drawing, the table and the sentence of [`show`] go."""
    return [gr.Image(format="png", label=label, **options), gr.Dataframe(headers=TABLE), gr.Markdown()]


def build(demo: Demo) -> gr.Blocks:
    """The page."""
    # One call at a time: the machine is small, and tokenizers do not like two threads.
    queue = {"concurrency_id": "model", "concurrency_limit": 1}
    with gr.Blocks(title="GLIPv2") as page:
        gr.Markdown(f"# GLIPv2\nFinds what a text names in an image. Model: `{Path(demo.name).name}`.")
        with gr.Row():
            with gr.Column(scale=2):
                image = gr.Image(type="pil", label="Image", elem_id="image")
                guarded(image, "This file is no image that can be read; choose a PNG or JPEG file.")
                samples = [data.chelsea(), data.coffee(), data.astronaut()]
                gr.Examples([[Image.fromarray(sample)] for sample in samples], image, label="Images to try (CC0)")
            with gr.Column(scale=3), gr.Tabs():
                with gr.Tab("Detect"):
                    labels = gr.Textbox("cat, cup, spoon, person", label="Labels, comma-separated", elem_id="labels")
                    limit = threshold_slider()
                    button = gr.Button("Detect", variant="primary", elem_id="detect")
                    outputs = found_outputs("Boxes", elem_id="detected")
                    button.click(checked(demo.detect), [image, labels, limit], outputs, api_name="detect", **queue)
                with gr.Tab("Ground"):
                    sentence = gr.Textbox("a cup of coffee beside a spoon", label="Sentence")
                    limit = threshold_slider()
                    button = gr.Button("Ground", variant="primary")
                    outputs = found_outputs("Boxes of its phrases")
                    button.click(checked(demo.ground), [image, sentence, limit], outputs, api_name="ground", **queue)
                with gr.Tab("Segment"):
                    if demo.has("mask_head"):
                        labels = gr.Textbox("cat, cup, spoon, person", label="Labels, comma-separated")
                        limit = threshold_slider()
                        button = gr.Button("Segment", variant="primary")
                        outputs = found_outputs("Masks")
                        function = checked(demo.segment)
                        button.click(function, [image, labels, limit], outputs, api_name="segment", **queue)
                    else:
                        gr.Markdown("This checkpoint has no mask head, so it segments nothing.")
                with gr.Tab("Ask"):
                    if demo.has("answer_head"):
                        question = gr.Textbox("what color is the cup?", label="Question")
                        limit = threshold_slider()
                        button = gr.Button("Ask", variant="primary")
                        outputs = [gr.Label(label="Answers"), *found_outputs("What it names")]
                        button.click(checked(demo.ask), [image, question, limit], outputs, api_name="ask", **queue)
                    else:
                        gr.Markdown("This checkpoint has no answer head, so it answers no questions.")
                with gr.Tab("Caption"):
                    if demo.has("caption_head"):
                        beginning = gr.Textbox("", label="Beginning (may be empty)")
                        button = gr.Button("Caption", variant="primary")
                        outputs = gr.Textbox(label="Caption")
                        button.click(checked(demo.caption), [image, beginning], outputs, api_name="caption", **queue)
                    else:
                        gr.Markdown("This checkpoint has no caption head, so it writes no captions.")
    return page


def model_name() -> str:
    return os.environ.get("GLIPV2_MODEL") or metadata_load(Path(__file__).with_name("README.md"))["models"][0]


if __name__ == "__main__":
    build(Demo(model_name())).launch()
