"""
Fine-tunes a GLIPv2 checkpoint on a COCO-format folder: all of it or a part, with all images or a few.

    python examples/finetune_detection.py --model MODEL --data raccoon --output outputs/raccoon
    python examples/finetune_detection.py --model MODEL --data raccoon --output outputs/few --shots 5 --train prompt

A folder holds `train.json` beside `train/`, or `train/_annotations.coco.json` (Roboflow, ODinW). `--train` chooses
what learns: everything, all but the lower half of the backbone or the text encoder, the detection head, offsets on the
tokens of the prompt (a few kilobytes), or low-rank adapters. The weights that are best on the evaluation split are
kept; `metrics.json` holds their scores there and, with `--test_split`, on images that chose nothing.
`--keep_vocabulary` mixes in a fraction of other data, so that the model does not forget its other labels.

Goes on after an interruption with `--resume latest`; runs on many processes with `accelerate launch`.
"""

import argparse

import torch

from transformers_glipv2 import GLIPv2ForObjectDetection, GLIPv2Processor
from transformers_glipv2.cli.arguments import (
    InputFile,
    InputPath,
    ScriptParser,
    add_custom_loaders,
    add_image_size,
    add_max_samples,
    add_model,
    add_outside_paths,
    add_training,
    check_paths,
    fraction_below_one,
    non_negative_int,
    positive_float,
    positive_int,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.training import finish_training, fit, set_image_size, start_training, step_loaders
from transformers_glipv2.data.augment import Compose, HorizontalFlip, PhotometricDistortion
from transformers_glipv2.data.collate import GroundingCollator
from transformers_glipv2.data.few_shot import few_shot
from transformers_glipv2.data.formats.coco import load_coco
from transformers_glipv2.data.mixture import MixtureDataset
from transformers_glipv2.prompts import clean_labels, label_prompt
from transformers_glipv2.training import (
    TRAIN_WAYS,
    DetectionEvaluator,
    SamplerBySource,
    load_sources,
    load_tuned,
    make_evaluator,
    parameter_groups,
    prepare_tuning,
    read_data_file,
    require_learnable,
)

LEARNING_RATES = {**dict.fromkeys(TRAIN_WAYS, 1e-4), "head": 1e-3, "prompt": 5e-2, "lora": 5e-4}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id to start from")
    add("--data", required=True, type=InputPath, help="COCO-format folder")
    add("--shots", type=positive_int, help="images of each class, as ODinW draws them (default: all images)")
    add("--empty_images", type=non_negative_int, default=0, help="with --shots: images without objects (default: 0)")
    add_max_samples(parser, "the first so many images of each split; with --eval_split train one can overfit them")
    add("--keep_vocabulary", type=InputFile, help="data file (YAML) that is rehearsed against forgetting")
    help = "of such examples; 0 only measures forgetting (default: 0.25)"
    add("--rehearsal_fraction", type=fraction_below_one, default=0.25, help=help)
    add("--eval_split", default="val", help="split that chooses the best weights; none: keep the last (default: val)")
    add("--test_split", help="split that the best weights are scored on at the end (default: none)")
    help = ", ".join(f"{way} {rate:g}" for way, rate in LEARNING_RATES.items())
    add("--learning_rate", type=positive_float, help=f"(default: {help})")
    add_image_size(parser, "of training; the largest is used for evaluation and saved")
    add_outside_paths(parser)
    add_custom_loaders(parser)
    add_training(parser, 4, "images of a step, over all processes", 50, TRAIN_WAYS, 300)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict:
    args = check_paths(parse_args(arguments))
    accelerator = start_training(args)

    # Data. Every image is asked for all classes in the file's order, as it will be in use.
    processor = GLIPv2Processor.from_pretrained(args.model)
    set_image_size(processor, args.image_size)
    dataset = load_coco(args.data, split="train", allow_outside_paths=args.allow_outside_paths)
    if args.max_samples is not None:
        dataset = dataset.select(range(min(args.max_samples, len(dataset))))
    if args.shots is not None:
        dataset = few_shot(dataset, args.shots, args.seed, empty_images=args.empty_images)
    require_learnable([dataset], ["boxes"])
    rehearsal = read_data_file(args.keep_vocabulary, args.allow_custom_loaders) if args.keep_vocabulary else None
    sources, weights = [dataset], [1.0]
    if rehearsal is not None and args.rehearsal_fraction:
        others, own = load_sources(rehearsal)
        sources += others
        weights = [1 - args.rehearsal_fraction, *(args.rehearsal_fraction * weight / sum(own) for weight in own)]
    mixture = MixtureDataset(sources, weights, seed=args.seed, length=args.num_steps * args.batch_size)
    collator = GroundingCollator(
        processor,
        sampler=SamplerBySource(processor, len(dataset.class_names)),
        augment=Compose([HorizontalFlip(), PhotometricDistortion()]),
        sizes=args.image_size,
        size_period=args.batch_size,
        max_text_length=processor.max_tokens,
        seed=args.seed,
    )

    # Model and optimizer. A pretrained text encoder learns slowly; a new head, offsets and adapters do not.
    model = GLIPv2ForObjectDetection.from_pretrained(args.model)
    prompt = label_prompt(clean_labels(dataset.class_names)).text
    model = prepare_tuning(model, args.train, processor, prompt)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    rate = args.learning_rate or LEARNING_RATES[args.train]
    text_factor = 1.0 if args.train in ("head", "prompt", "lora") else 0.1
    optimizer = torch.optim.AdamW(parameter_groups(model, rate, text_learning_rate_factor=text_factor))
    model, optimizer = accelerator.prepare(model, optimizer)

    # Training; the best weights by AP are kept, or the last.
    def make_score(split: str | None) -> DetectionEvaluator | None:
        if split is None:
            return None
        options = {"max_samples": args.max_samples, "allow_outside_paths": args.allow_outside_paths}
        return DetectionEvaluator(accelerator, processor, args.data, split, **options)

    score = make_score(None if args.eval_split == "none" else args.eval_split)
    test = make_score(args.test_split)
    kept = make_evaluator(rehearsal, accelerator, processor) if rehearsal is not None else None
    metrics = {"train": args.train, "shots": args.shots, "seed": args.seed, "trainable_parameters": trainable}
    if kept is not None:
        metrics["kept_vocabulary_before"] = kept(model.eval())
    make_loader = step_loaders(args, accelerator, mixture, collator)
    warmup_steps = min(20, args.num_steps // 10)
    state = fit(args, accelerator, processor, model, optimizer, make_loader, warmup_steps, score)
    if state.stopped == "signal":
        return metrics

    # The kept weights, read back from the output folder.
    best = load_tuned(GLIPv2ForObjectDetection, args.model, args.output)
    best = accelerator.prepare_model(best, evaluation_mode=True).eval()
    metrics |= {"steps": state.step, "seconds": state.seconds}
    if score is not None:
        metrics |= {"best_step": state.best_step, args.eval_split: state.best_metrics}
    if test is not None:
        metrics[args.test_split] = test(best)
    if kept is not None:
        metrics["kept_vocabulary_after"] = kept(best)
    return finish_training(args, accelerator, state, metrics)


if __name__ == "__main__":
    run(main)
