"""
Fine-tunes a GLIPv2 checkpoint on a data set: all of it or a part, with all images or a few.

    python examples/finetune_detection.py --model MODEL --data raccoon --output outputs/raccoon
    python examples/finetune_detection.py --model MODEL --data raccoon --output outputs/few --shots 5 --train prompt

`--data` takes COCO (Roboflow, ODinW), YOLO, Pascal VOC, CSV and what else `open_dataset` reads. `--train` chooses what
learns: everything, all but the lower half of the backbone or the text encoder, the detection head, offsets on the
tokens of the prompt (a few kilobytes), or low-rank adapters. What is not given is chosen from the data, see
`training/recipe.py`. The weights that are best on the evaluation split are kept; the output folder also gets
`metrics.json`, a model card and plots. They are scored on the `test` images too, which chose nothing.

`--negatives` takes images without your classes, so that the model does not find them everywhere. `--keep_vocabulary`
mixes in a fraction of other data, so that the model does not forget its other labels. `--add_classes` keeps the
classes of a model that was fine-tuned before.

Goes on after an interruption with `--resume latest`; runs on many processes with `accelerate launch`.
"""

import argparse
import json

from transformers_glipv2.cli.arguments import (
    InputFile,
    InputFolder,
    InputPath,
    ScriptParser,
    add_custom_loaders,
    add_image_size,
    add_max_samples,
    add_model,
    add_outside_paths,
    add_training,
    check_paths,
    fraction,
    fraction_below_one,
    non_negative_int,
    positive_float,
    positive_int,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.training import TRAIN_WAYS
from transformers_glipv2.training.fine_tune import FineTuneOptions, fine_tune


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id to start from")
    add("--data", required=True, type=InputPath, help="data set, in whatever format")
    add("--images", type=InputFolder, help="folder that file names start from, where the annotations do not say it")
    help = "of the training images, held out where there is no evaluation split (default: 0.15)"
    add("--val_fraction", type=fraction_below_one, default=0.15, help=help)
    add("--epochs", type=positive_float, help="length of the run in passes over the images, in place of --num_steps")
    add("--shots", type=positive_int, help="images of each class, as ODinW draws them (default: all images)")
    add("--empty_images", type=non_negative_int, default=0, help="with --shots: images without objects (default: 0)")
    add_max_samples(parser, "the first so many images of each split; with --eval_split train one can overfit them")
    add("--negatives", type=InputFolder, help="folder of images in which none of the classes is")
    help = "of examples, from --negatives (default: 0.2)"
    add("--negative_fraction", type=fraction_below_one, default=0.2, help=help)
    add("--keep_vocabulary", type=InputFile, help="data file (YAML) that is rehearsed against forgetting")
    help = "of such examples; 0 only measures forgetting (default: 0.25)"
    add("--rehearsal_fraction", type=fraction_below_one, default=0.25, help=help)
    add("--add_classes", action="store_true", help="keep the classes that the model was fine-tuned for")
    add("--eval_split", default="val", help="split that chooses the best weights; none: keep the last (default: val)")
    add("--test_split", help="split that the best weights are scored on at the end (default: test, if there is one)")
    add("--learning_rate", type=positive_float, help="at its height (default: by --train, the data and the backbone)")
    add("--ema_decay", type=fraction_below_one, help="of averaged weights; 0: none (default: 0)")
    add("--scramble", type=fraction, help="of images whose objects are scrambled, as negatives (default: 0.25)")
    add_image_size(parser, "of training; the largest is used for evaluation and saved")
    add_outside_paths(parser)
    add_custom_loaders(parser)
    add_training(parser, 4, "images of a step, over all processes", None, TRAIN_WAYS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict:
    args = check_paths(parse_args(arguments))
    metrics = fine_tune(FineTuneOptions(**vars(args)))
    print(json.dumps(metrics, indent=2))
    return metrics


if __name__ == "__main__":
    run(main)
