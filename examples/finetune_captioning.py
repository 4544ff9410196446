"""
Fine-tunes a GLIPv2 checkpoint to describe images, all of it or a new head over frozen weights.

    python examples/finetune_captioning.py --model MODEL --data captions.yaml --output outputs/captions
    python examples/finetune_captioning.py --model MODEL --data scenes.yaml --output outputs/captions \\
        --train head --region_attention --num_steps 5000 --learning_rate 5e-4

The data file (YAML, see `transformers_glipv2/training/data_file.py`) lists captions, and under `evaluation` a source
of captions that chooses the best weights:

    sources: [{kind: karpathy_captions, path: dataset_coco.json, image_folder: coco, split: train}]
    evaluation: {kind: karpathy_captions, path: dataset_coco.json, image_folder: coco, split: val, per_image: true,
                 max_samples: 500}

or composite scenes, `{kind: scenes, path: assets, kinds: {caption: 1.0}}`, with `split: test` to evaluate on. Defaults
are the paper's: ten epochs, learning rate 5e-5, 10 % warm-up, decay 0.01; there images have 576 px
(`--image_size 576`).

The best weights by CIDEr of greedy captions are kept; `metrics.json` has the scores of `--num_beams` beams on the same
images and `captions.json` the captions. Where objects have phrases, it also says how many phrases of the captions
are true and how many of their boxes are right. With `--train head` the head alone learns, and the output keeps the
checkpoint's other heads; such a head has to attend to regions of the image itself (`--region_attention`).
`--ablate_images` blanks the images: how well captions are guessed without them. Goes on after an interruption with
`--resume latest`; runs on many processes with `accelerate launch`.
"""

import argparse

from transformers_glipv2 import GLIPv2Processor
from transformers_glipv2.cli.arguments import (
    ScriptParser,
    add_data_file,
    add_image_size,
    add_model,
    add_num_beams,
    add_training,
    check_paths,
    positive_float,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.training import (
    finish_training,
    fit,
    language_data,
    prepare_head,
    start_training,
    step_loaders,
)
from transformers_glipv2.data.files import write_json
from transformers_glipv2.evaluation.grounded_captions import grounded_caption_scores
from transformers_glipv2.inference.language import caption_and_ground
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration
from transformers_glipv2.training import (
    FROZEN_WAYS,
    CaptionCollator,
    CaptionEvaluator,
    contrastive_head_of,
    evaluation_examples,
    head_groups,
    load_other_heads,
    make_optimizer,
    require_learnable,
)

EPOCHS = 10


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id to start from; without a caption head it gets a new one")
    add_data_file(parser)
    add("--region_attention", action="store_true", help="a head that attends to regions of the image for each word")
    add("--ablate_images", action="store_true", help="blank all images, for a baseline of text alone")
    add("--learning_rate", type=positive_float, default=5e-5, help="(default: 5e-5)")
    add_image_size(parser, "of training; the largest is used for evaluation and saved")
    add("--prefix", default="", help="how captions begin in evaluation (default: nothing)")
    add_num_beams(parser)
    steps = f"optimizer steps (default: {EPOCHS} epochs; endless data needs it)"
    add_training(
        parser, 16, "captions of a step, over all processes", 500, (*FROZEN_WAYS, "head"), num_steps_help=steps
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict:
    args = check_paths(parse_args(arguments))
    accelerator = start_training(args)
    with_images = not args.ablate_images

    # Data.
    processor = GLIPv2Processor.from_pretrained(args.model)
    data, mixture, collate = language_data(args, processor, EPOCHS)
    require_learnable(mixture.sources, ["captions"])
    collator = CaptionCollator(collate, with_images=with_images)

    # Model and optimizer. Captions begin and end as the tokenizer's texts do. A new head that attends to regions
    # starts from what pre-training learnt of regions and words.
    head = {"caption_region_attention": True} if args.region_attention else {}
    model, loaded = GLIPv2ForConditionalGeneration.from_pretrained(args.model, **head, output_loading_info=True)
    model.set_special_tokens(processor.tokenizer)
    if "caption_head.region_attention.label_embeddings.weight" in loaded["missing_keys"]:
        contrastive_head = contrastive_head_of(model.config, load_other_heads(args.model, model))
        if contrastive_head is not None:
            model.start_from_contrast(contrastive_head, processor.tokenizer)
    other_heads = prepare_head(model, args.train, args.model)
    optimizer = make_optimizer(head_groups(model, args.learning_rate, "caption_head.", 1.0))
    model, optimizer = accelerator.prepare(model, optimizer)

    # Training; the best weights by CIDEr are kept.
    examples = evaluation_examples(data, "caption")

    def evaluator(num_beams: int = 1) -> CaptionEvaluator:
        return CaptionEvaluator(accelerator, processor, examples, args.prefix, num_beams, with_images=with_images)

    make_loader = step_loaders(args, accelerator, processor, mixture, collator)
    options = {"warmup_steps": args.num_steps // 10, "other_heads": other_heads, "metric": "CIDEr"}
    evaluate = evaluator() if examples else None
    state = fit(args, accelerator, processor, model, optimizer, make_loader, evaluate=evaluate, **options)
    metrics = {"image_ablated": args.ablate_images, "best_step": state.best_step, "seconds": state.seconds}
    if state.stopped == "signal" or examples is None:
        return finish_training(args, accelerator, state, metrics)

    # The kept weights, read back from the output folder, with beams and boxes.
    best = GLIPv2ForConditionalGeneration.from_pretrained(args.output).to(accelerator.device).eval()
    beams = evaluator(args.num_beams)
    metrics |= {"greedy": state.best_metrics, f"{args.num_beams} beams": beams(best)}
    if accelerator.is_main_process:
        captions = zip(examples, beams.captions, strict=True)
        captions = [{"image_id": example["image_id"], "caption": text} for example, text in captions]
        write_json(args.output / "captions.json", captions)
        grounded = [example for example in examples if (example.get("objects") or {}).get("phrase")]
        if grounded and with_images:
            images = [example["image"] for example in grounded]
            results = caption_and_ground(best, processor, images, args.prefix, beams.generation)
            metrics["grounded"] = grounded_caption_scores(grounded, results)
    return finish_training(args, accelerator, state, metrics)


if __name__ == "__main__":
    run(main)
