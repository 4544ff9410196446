"""`glipv2 data inspect` and `glipv2 data convert`."""

from pathlib import Path
from typing import Annotated

import typer

from transformers_glipv2.cli import checks
from transformers_glipv2.cli.options import Seed, command_app, number

app = command_app("Look at a data set of boxes, or write it in another format.")

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A COCO json or folder, a YOLO data.yaml or folder, a Pascal VOC folder, a CSV file, an image folder "
        "with metadata.jsonl, a data set of `datasets`, or USER/NAME of the Hub.",
        show_default=False,
    ),
]
ImagesOfData = Annotated[
    Path | None,
    typer.Option("--images", help="Folder of images, where the annotations do not say it.", show_default=False),
]
ValFraction = Annotated[
    float,
    number(
        checks.fraction_below_one,
        "--val_fraction",
        help="Of the training images, held out as val where there is no such split; 0: none.",
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="coco, yolo, voc, csv, imagefolder or datasets, where a folder holds several. Default: found out.",
        show_default=False,
    ),
]
Outside = Annotated[
    bool,
    typer.Option("--allow_outside_paths", help="Follow file names that lead out of the folder of images."),
]


@app.command()
def inspect(
    data: Data,
    images: ImagesOfData = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Whose images are drawn. Default: the first.", show_default=False)
    ] = None,
    max_samples: Annotated[int, number(checks.positive_int, "--max_samples", help="Images on the sheet.")] = 16,
    output: Annotated[Path, typer.Option("--output", "-o", help="The sheet of annotated images (.png, .jpg).")] = Path(
        "outputs/data.png"
    ),
    val_fraction: ValFraction = 0.15,
    seed: Seed = 0,
    format: Format = None,
    allow_outside_paths: Outside = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON, and nothing else.")] = False,
) -> None:
    """
    Say what a data set is, count its images, boxes, classes and problems, and draw 16 images with their boxes.

    Example: glipv2 data inspect raccoon
    """
    import json

    from transformers_glipv2.cli.data_sheet import class_table, draw_sheet
    from transformers_glipv2.data.formats.open import open_dataset

    checks.OutputImage(output).check("--output")
    opened = open_dataset(
        data,
        images,
        val_fraction,
        seed,
        format=format,
        with_masks=True,
        allow_outside_paths=allow_outside_paths,
    )
    shown = opened.split(split or opened.split_names[0])
    report = opened.report
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        print(report)
        print()
        print(class_table(report))
    count = draw_sheet(shown, output, max_samples, seed)
    if not as_json:
        print(f"Wrote {output}: {count} images of {split or opened.split_names[0]}.")


@app.command()
def convert(
    data: Data,
    to: Annotated[str, typer.Option("--to", help="coco or yolo.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder.")],
    images: ImagesOfData = None,
    val_fraction: ValFraction = 0.0,
    seed: Seed = 0,
    format: Format = None,
    allow_outside_paths: Outside = False,
) -> None:
    """
    Write a data set with its images as COCO (Roboflow's folders) or YOLO (data.yaml).

    Example: glipv2 data convert raccoon --to yolo --output raccoon-yolo
    """
    from transformers_glipv2.data.formats.open import open_dataset
    from transformers_glipv2.data.formats.write import convert_dataset

    opened = open_dataset(
        data,
        images,
        val_fraction,
        seed,
        format=format,
        with_masks=True,
        allow_outside_paths=allow_outside_paths,
    )
    print(f"{data}: {opened.form}")
    counts = convert_dataset(opened, output, to)
    for problem in opened.report.problems():
        print(problem)
    print(f"Wrote {output}: {', '.join(f'{name} {count} images' for name, count in counts.items())}.")
