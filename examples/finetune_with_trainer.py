"""
Fine-tunes a GLIPv2 checkpoint on a data set with transformers' `Trainer`, as its guide of object detection.

    python examples/finetune_with_trainer.py --model MODEL --data raccoon --output outputs/raccoon

The data set is in any format that `open_dataset` reads. Every image is asked for all its classes. The weights with the
best AP on the evaluation split are kept.
`finetune_detection.py` does more: augmentation, few images, adapters, other data against forgetting.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from transformers import EvalPrediction, Trainer, TrainingArguments

from transformers_glipv2 import GLIPv2ForObjectDetection, GLIPv2Processor
from transformers_glipv2.boxes import denormalize_boxes
from transformers_glipv2.cli.arguments import (
    InputFolder,
    InputPath,
    ScriptParser,
    add_model,
    add_output_folder,
    add_seed,
    check_paths,
    fraction_below_one,
    positive_float,
    positive_int,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.data.formats.open import open_dataset
from transformers_glipv2.evaluation.coco import evaluate_coco
from transformers_glipv2.evaluation.detector import coco_entries
from transformers_glipv2.modeling_glipv2 import GLIPv2ObjectDetectionOutput
from transformers_glipv2.prompts import class_ids, clean_labels


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id to start from")
    add("--data", required=True, type=InputPath, help="data set, in whatever format")
    add("--images", type=InputFolder, help="folder that file names start from, where the annotations do not say it")
    help = "of the training images, held out where there is no evaluation split (default: 0.15)"
    add("--val_fraction", type=fraction_below_one, default=0.15, help=help)
    add("--eval_split", default="val", help="split that chooses the best weights (default: val)")
    add_output_folder(parser, "folder for weights and checkpoints")
    add("--epochs", type=positive_float, default=10, help="passes over the training images (default: 10)")
    add("--batch_size", type=positive_int, default=4, help="images of a step and process (default: 4)")
    add("--learning_rate", type=positive_float, default=1e-4, help="(default: 1e-4)")
    add_seed(parser, "of data order and dropout")
    return parser.parse_args(arguments)


class Collator:
    """Detection examples as a batch; every text lists all classes."""

    def __init__(self, processor: GLIPv2Processor, class_names: Sequence[str]):
        self.processor = processor
        self.labels = clean_labels(class_names)
        self.index = {name: index for index, name in enumerate(class_names)}

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        annotations = [
            {
                "boxes": example["objects"]["bbox"],
                "labels": [self.index[name] for name in example["objects"]["category"]],
            }
            for example in examples
        ]
        images = [example["image"] for example in examples]
        return dict(self.processor(images=images, text=[self.labels], annotations=annotations))


class AveragePrecision:
    """`compute_metrics` of the trainer: AP on what the model gave for the batches, in pixels of the resized images."""

    def __init__(self, processor: GLIPv2Processor, labels: Sequence[str], ignored: Sequence[str]):
        self.processor = processor
        self.labels = list(labels)
        self.names = [field.name for field in fields(GLIPv2ObjectDetectionOutput) if field.name not in ignored]
        self.category_of = {int(name): category for category, name in enumerate(class_ids(self.labels))}

    def __call__(self, evaluated: EvalPrediction) -> dict[str, float]:
        images, objects, predictions = [], [], []
        for arrays, targets in zip(evaluated.predictions, evaluated.label_ids, strict=True):
            tensors = [torch.from_numpy(array) if hasattr(array, "dtype") else array for array in arrays]
            outputs = GLIPv2ObjectDetectionOutput(**dict(zip(self.names, tensors, strict=True)))
            results = self.processor.post_process_grounded_object_detection(outputs, text_labels=self.labels)
            for result, target, size in zip(results, targets, outputs.image_sizes, strict=True):
                image_id = len(images)
                images.append({"id": image_id, "height": int(size[0]), "width": int(size[1])})
                predictions += coco_entries(image_id, result, range(len(self.labels)))
                boxes = denormalize_boxes(torch.from_numpy(target["boxes"]), size).tolist()
                for (x1, y1, x2, y2), class_id in zip(boxes, target["class_ids"].tolist(), strict=True):
                    width, height = x2 - x1 + 1, y2 - y1 + 1
                    objects.append(
                        {
                            "id": len(objects),
                            "image_id": image_id,
                            "category_id": self.category_of[class_id],
                            "bbox": [x1, y1, width, height],
                            "area": width * height,
                            "iscrowd": 0,
                        }
                    )
        categories = [{"id": category, "name": name} for category, name in enumerate(self.labels)]
        annotations = {"images": images, "annotations": objects, "categories": categories}
        scores = evaluate_coco(annotations, predictions, progress=False)
        return {name: scores[name] for name in ("AP", "AP50", "AP75")}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    args = check_paths(parse_args(arguments))
    dataset = open_dataset(args.data, args.images, args.val_fraction)
    train = dataset.split("train")
    evaluation = dataset.split(args.eval_split, "--eval_split")
    model = GLIPv2ForObjectDetection.from_pretrained(args.model)
    processor = GLIPv2Processor.from_pretrained(args.model)
    collator = Collator(processor, train.class_names)
    model.config.labels = collator.labels  # the labels of the saved model, where none are given
    settings = TrainingArguments(
        output_dir=str(args.output),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        warmup_steps=0.1,
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        seed=args.seed,
        # Examples hold an image and its objects, which the collator needs, and no columns of the model's arguments.
        remove_unused_columns=False,
        # Images of a batch share a size, those of two batches may not.
        eval_do_concat_batches=False,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="AP",
        greater_is_better=True,
        report_to="none",
    )
    trainer = Trainer(
        model=model,
        args=settings,
        data_collator=collator,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=processor,
        compute_metrics=AveragePrecision(
            processor, collator.labels, ("loss", *model.config.keys_to_ignore_at_inference)
        ),
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    trainer.save_metrics("eval", metrics)
    return metrics


if __name__ == "__main__":
    run(main)
