"""
A page on which GLIPv2 detects, grounds, segments, answers and captions.

    GLIPV2_MODEL=FOLDER python hub_upload/space/app.py

The model is the first one that the README beside this file names, or what GLIPV2_MODEL says: a folder or a name on the
Hub. Its code comes with it, so the package need not be installed.
"""

import os
from pathlib import Path
from typing import Any

import gradio as gr
import torch
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
    from transformers_glipv2.inference.drawing import Drawn, draw
except ImportError:  # on the Hub the file is beside this one
    from drawing import Drawn, draw

TASK = "zero-shot-object-detection"
HEADS = {
    "mask_head": AutoModelForInstanceSegmentation,
    "answer_head": AutoModelForVisualQuestionAnswering,
    "caption_head": AutoModelForImageTextToText,
}
TABLE = ["what", "score", "x1", "y1", "x2", "y2"]
MAX_BOXES = 30


class Demo:
    """The models of one checkpoint, and what the tabs do with them."""

    def __init__(self, name: str):
        with safe_open(cached_file(name, "model.safetensors"), framework="pt") as weights:
            parts = {tensor.split(".")[0] for tensor in weights.keys()}  # noqa: SIM118
        trust = {"trust_remote_code": True}
        self.name = name
        self.processor = AutoProcessor.from_pretrained(name, **trust)
        # By name, not around a model: only so does transformers take the pipeline's class from the checkpoint too.
        self.detector = pipeline(TASK, model=name, device="cpu", **trust)
        self.processor.image_processor.allow_urls = self.detector.image_processor.allow_urls = False
        detector = self.detector.model
        # The other models share the detector's weights in the checkpoint; only their heads are further ones in memory.
        self.models = {"detection_head": detector}
        for head, auto_class in HEADS.items():
            if head in parts:
                model = auto_class.from_pretrained(name, **trust).eval()
                model.model, model.detection_head = detector.model, detector.detection_head
                self.models[head] = model

    def has(self, head: str) -> bool:
        return head in self.models

    def detect(self, image: Image.Image, labels: str, threshold: float) -> tuple[Image.Image, list[list[Any]]]:
        """Boxes of labels, which commas part."""
        found = self.detector(image, candidate_labels=split(labels), threshold=threshold, top_k=MAX_BOXES)
        group = {label: index for index, label in enumerate(split(labels))}
        return show(
            image,
            [(one["label"], one["score"], list(one["box"].values()), None, group[one["label"]]) for one in found],
        )

    def ground(self, image: Image.Image, sentence: str, threshold: float) -> tuple[Image.Image, list[list[Any]]]:
        """Boxes of the noun phrases of a sentence."""
        outputs = self.run("detection_head", image, sentence)
        return show(image, self.phrases(outputs, sentence, image, threshold))

    def segment(self, image: Image.Image, labels: str, threshold: float) -> tuple[Image.Image, list[list[Any]]]:
        """Masks of labels, which commas part."""
        names = split(labels)
        (found,) = self.processor.post_process_instance_segmentation(
            self.run("mask_head", image, [names]),
            text_labels=[names],
            target_sizes=[(image.height, image.width)],
            threshold=threshold,
            max_detections=MAX_BOXES,
        )
        columns = (found["text_labels"], found["scores"].tolist(), found["boxes"].tolist(), found["masks"].numpy())
        return show(image, [(*row, None) for row in zip(*columns, strict=True)])

    def ask(
        self, image: Image.Image, question: str, threshold: float
    ) -> tuple[dict[str, float], Image.Image, list[list[Any]]]:
        """The five likeliest answers, and boxes of what the question names."""
        outputs = self.run("answer_head", image, question)
        scores, answers = outputs.answer_logits[0].sigmoid().sort(descending=True)
        names = self.models["answer_head"].config.id2label
        best = zip(answers[:5].tolist(), scores[:5].tolist(), strict=True)
        drawing, table = show(image, self.phrases(outputs, question, image, threshold))
        return {names[answer]: score for answer, score in best}, drawing, table

    @torch.no_grad()
    def caption(self, image: Image.Image, beginning: str) -> str:
        """A caption, from the given beginning where there is one."""
        text = beginning.strip()
        inputs = self.processor(images=image, text=text) if text else self.processor(images=image)
        ids = self.models["caption_head"].generate(**inputs, num_beams=3, max_new_tokens=30)
        return self.processor.batch_decode(ids, skip_special_tokens=True)[0]

    @torch.no_grad()
    def run(self, head: str, image: Image.Image, text: Any) -> Any:
        return self.models[head](**self.processor(images=image, text=text))

    def phrases(self, outputs: Any, sentence: str, image: Image.Image, threshold: float) -> list[tuple]:
        (found,) = self.processor.post_process_phrase_grounding(
            outputs, text=sentence, target_sizes=[(image.height, image.width)], top_k=3, threshold=threshold
        )
        rows = [
            (phrase["phrase"], score, box, None, index)
            for index, phrase in enumerate(found)
            for score, box in zip(phrase["scores"].tolist(), phrase["boxes"].tolist(), strict=True)
        ]
        return sorted(rows, key=lambda row: -row[1])


def split(labels: str) -> list[str]:
    """Labels between commas, each once."""
    names = dict.fromkeys(label.strip() for label in labels.split(","))
    return [name for name in names if name]


def show(image: Image.Image, found: list[tuple]) -> tuple[Image.Image, list[list[Any]]]:
    """The drawing and the table of (name, score, box, mask or `None`, group or `None`), the surest first."""
    things = [Drawn(f"{name} {score:.2f}", box, mask, group) for name, score, box, mask, group in found]
    table = [[name, round(score, 3), *(round(side) for side in box)] for name, score, box, _, _ in found]
    return draw(image, things), table


def checked(function):
    """A method of `Demo` as the page calls it: what is missing, and what is wrong with the input, is said there."""

    def call(image: Image.Image | None, text: str, *options: Any) -> Any:
        if image is None:
            raise gr.Error("Choose an image first.")
        if function.__name__ != "caption" and not split(text):
            raise gr.Error("Write what to look for first.")
        try:
            return function(function.__self__.processor.image_processor.open_image(image), text, *options)
        except (TypeError, ValueError) as error:
            raise gr.Error(str(error)) from error

    return call


def build(demo: Demo) -> gr.Blocks:
    """The page."""
    threshold = {"minimum": 0.0, "maximum": 1.0, "value": 0.3, "step": 0.01, "label": "Score of a box at least"}
    # One call at a time: the machine is small, and tokenizers do not like two threads.
    queue = {"concurrency_id": "model", "concurrency_limit": 1}
    with gr.Blocks(title="GLIPv2") as page:
        gr.Markdown(f"# GLIPv2\nFinds what words name in an image. Model: `{Path(demo.name).name}`.")
        with gr.Row():
            with gr.Column(scale=2):
                image = gr.Image(type="pil", label="Image", elem_id="image")
                samples = [data.chelsea(), data.coffee(), data.astronaut()]
                gr.Examples([[Image.fromarray(sample)] for sample in samples], image, label="Images to try (CC0)")
            with gr.Column(scale=3), gr.Tabs():
                with gr.Tab("Detect"):
                    labels = gr.Textbox("cat, cup, spoon, person", label="Labels, parted by commas", elem_id="labels")
                    limit = gr.Slider(**threshold)
                    button = gr.Button("Detect", variant="primary", elem_id="detect")
                    outputs = [gr.Image(format="png", label="Boxes", elem_id="detected"), gr.Dataframe(headers=TABLE)]
                    button.click(checked(demo.detect), [image, labels, limit], outputs, api_name="detect", **queue)
                with gr.Tab("Ground"):
                    sentence = gr.Textbox("a cup of coffee beside a spoon", label="Sentence")
                    limit = gr.Slider(**threshold)
                    button = gr.Button("Ground", variant="primary")
                    outputs = [gr.Image(format="png", label="Boxes of its phrases"), gr.Dataframe(headers=TABLE)]
                    button.click(checked(demo.ground), [image, sentence, limit], outputs, api_name="ground", **queue)
                with gr.Tab("Segment"):
                    if demo.has("mask_head"):
                        labels = gr.Textbox("cat, cup, spoon, person", label="Labels, parted by commas")
                        limit = gr.Slider(**threshold)
                        button = gr.Button("Segment", variant="primary")
                        outputs = [gr.Image(format="png", label="Masks"), gr.Dataframe(headers=TABLE)]
                        function = checked(demo.segment)
                        button.click(function, [image, labels, limit], outputs, api_name="segment", **queue)
                    else:
                        gr.Markdown("This checkpoint has no mask head, so it segments nothing.")
                with gr.Tab("Ask"):
                    if demo.has("answer_head"):
                        question = gr.Textbox("what color is the cup?", label="Question")
                        limit = gr.Slider(**threshold)
                        button = gr.Button("Ask", variant="primary")
                        outputs = [gr.Label(label="Answers"), gr.Image(format="png", label="What it names")]
                        outputs.append(gr.Dataframe(headers=TABLE))
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
