"""Questions with answers: VQA v2's files, and one file of images and questions (as DAQUAR can be written)."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers_glipv2.data.dataset import ImageDataset, PackedRecords
from transformers_glipv2.data.formats.coco_json import clean_id, read_coco_json
from transformers_glipv2.data.image_files import ImageFinder
from transformers_glipv2.data.schema import BoxReport


def load_vqa(
    questions_file: str | Path,
    annotations_file: str | Path | None,
    image_folder: str | Path,
    *,
    policy: str | Mapping[str, str] = "skip",
    file_name: Callable[[int | str], str] | None = None,
    allow_outside_paths: bool = False,
) -> ImageDataset:
    """
    Question examples of VQA v2 files, or of others in their format.

    Args:
        questions_file (`str` or `Path`): json with `questions` of question_id, image_id, question (`.gz` too).
        annotations_file (`str`, `Path` or `None`): json with `annotations` of question_id, image_id, answers and
            multiple_choice_answer; `None` where answers are not published (test): then `answers` are empty.
        image_folder (`str` or `Path`): holds the images.
        policy (`str` or `Mapping`, *optional*, defaults to `"skip"`): see `BoxReport`.
        file_name (`Callable`, *optional*): the file under the folder of an image id. By default COCO's names:
            `COCO_val2014_000000262148.jpg`, in `val2014/` or not, as the file's `data_subtype` says, or
            `000000262148.jpg`, as COCO 2017 has them.
        allow_outside_paths (`bool`, *optional*, defaults to `False`): follow file names and links that lead out of
            the image folder. Only for files that are trusted.

    Returns:
        `ImageDataset`: examples with question_id, question, answers (`list[str]`) and, with annotations, answer (the
        annotators' majority), question_type and answer_type.

    Raises:
        FileNotFoundError: when a file is missing.
        ValueError: when a file is of another kind, or the policy refuses.
    """
    questions = read_coco_json(questions_file, ("questions",), "VQA question")
    report = BoxReport(policy, Path(questions_file).name)
    annotations = None
    if annotations_file is not None:
        content = read_coco_json(annotations_file, ("annotations",), "VQA annotation")
        entries = [entry for entry in content["annotations"] if isinstance(entry, Mapping)]
        annotations = {clean_id(entry.get("question_id")): entry for entry in entries}
    find = file_name_finder(image_folder, str(questions.get("data_subtype", "")), file_name, allow_outside_paths)
    records = PackedRecords(_records(questions["questions"], annotations, find, report))
    report.warn_once()
    return ImageDataset(records, report=report)


def load_image_questions(
    annotation_file: str | Path,
    image_folder: str | Path | None = None,
    *,
    policy: str | Mapping[str, str] = "skip",
    allow_outside_paths: bool = False,
) -> ImageDataset:
    """
    Question examples of one file that lists images and questions, as COCO's lists images and annotations.

    Args:
        annotation_file (`str` or `Path`): json with `images` of id and file_name, and `questions` of image_id,
            question and answers, a list of strings. Several answers to one question (DAQUAR: "what is on the desk?",
            "book, cup") are all right, and each counts as if some of ten annotators had given it.
        image_folder (`str` or `Path`, *optional*): where `file_name` starts from; the json's folder by default.
        policy (`str` or `Mapping`, *optional*, defaults to `"skip"`): see `BoxReport`.
        allow_outside_paths (`bool`, *optional*, defaults to `False`): as for `load_vqa`.

    Returns:
        `ImageDataset`: examples with question, answers (ten strings), answer (the first) and question_type: the first
        two words of the question.

    Raises:
        FileNotFoundError: when a file is missing.
        ValueError: when the file is of another kind, or the policy refuses.
    """
    path = Path(annotation_file)
    content = read_coco_json(path, ("images", "questions"), "question")
    report = BoxReport(policy, path.name)
    find = ImageFinder(image_folder if image_folder is not None else path.parent, allow_outside_paths)
    records = PackedRecords(_image_questions(content, find, report))
    report.warn_once()
    return ImageDataset(records, report=report)


def _image_questions(content: Mapping[str, Any], find: ImageFinder, report: BoxReport) -> Iterator[dict[str, Any]]:
    images = {clean_id(entry.get("id")): entry for entry in content["images"] if isinstance(entry, Mapping)}
    for number, entry in enumerate(content["questions"]):
        entry = entry if isinstance(entry, Mapping) else {}
        image_id, question, answers = clean_id(entry.get("image_id")), entry.get("question"), entry.get("answers")
        where = f"question {number} of image {image_id!r}"
        file_name = images.get(image_id, {}).get("file_name")
        if image_id is None or not isinstance(file_name, str):
            report.add("bad_entry", f"{where}: no such image")
            continue
        if not isinstance(question, str) or not question.strip():
            report.add("empty_text", f"{where}: {question!r}")
            continue
        if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
            report.add("empty_text", f"{where} has no answers")
            continue
        image_path = find(file_name, report, where)
        if image_path is not None:
            yield {
                "kind": "vqa",
                "image_id": image_id,
                "image_path": image_path,
                "question": question,
                "answers": (answers * 10)[:10],
                "answer": answers[0],
                "question_type": " ".join(question.lower().split()[:2]),
            }


def file_name_finder(
    image_folder: str | Path,
    subset: str = "",
    file_name: Callable[[int | str], str] | None = None,
    allow_outside_paths: bool = False,
) -> Callable[[int | str, BoxReport, str], str | None]:
    """
    Finds the image of an id, for files that give ids only.

    Args:
        image_folder (`str` or `Path`): holds the images.
        subset (`str`, *optional*): "train2014", "val2014" or "test2015" in COCO's older names.
        file_name (`Callable`, *optional*): the file under the folder of an image id, instead of COCO's names.
        allow_outside_paths (`bool`, *optional*, defaults to `False`): as for `load_vqa`.

    Returns:
        `Callable`: like `ImageFinder`, called with the id.
    """
    finder = ImageFinder(image_folder, allow_outside_paths)

    def find(image_id: int | str, report: BoxReport, where: str) -> str | None:
        if file_name is not None:
            return finder(file_name(image_id), report, where)
        if not isinstance(image_id, int):
            return finder(f"{image_id}.jpg", report, where)
        # Without a folder in front, as a name that begins with "/" is one outside of the image folder.
        old = finder(f"{subset}/COCO_{subset}_{image_id:012d}.jpg".lstrip("/"), report, where)
        return old if old is None or Path(old).is_file() else finder(f"{image_id:012d}.jpg", report, where)

    return find


def _records(
    questions: list[Mapping[str, Any]],
    annotations: Mapping[Any, Mapping[str, Any]] | None,
    find: Callable[[int | str, BoxReport, str], str | None],
    report: BoxReport,
) -> Iterator[dict[str, Any]]:
    seen: set[Any] = set()
    for entry in questions:
        entry = entry if isinstance(entry, Mapping) else {}
        question_id, image_id = clean_id(entry.get("question_id")), clean_id(entry.get("image_id"))
        question = entry.get("question")
        where = f"question {question_id!r} of image {image_id!r}"
        if question_id is None or image_id is None or question_id in seen:
            report.add("bad_entry", f"{where} has no ids or comes twice")
            continue
        seen.add(question_id)
        if not isinstance(question, str) or not question.strip():
            report.add("empty_text", f"{where}: {question!r}")
            continue
        answers = {"answers": []} if annotations is None else _answers(annotations.get(question_id), report, where)
        if answers is None:
            continue
        image_path = find(image_id, report, where)
        if image_path is not None:
            yield {
                "kind": "vqa",
                "image_id": image_id,
                "image_path": image_path,
                "question_id": question_id,
                "question": question,
                **answers,
            }
    for question_id in annotations or ():
        if question_id not in seen:
            report.add("bad_entry", f"the annotation of question {question_id!r}, which the questions lack")


def _answers(entry: Mapping[str, Any] | None, report: BoxReport, where: str) -> dict[str, Any] | None:
    """The answer fields of an example, or `None` where the question is left out."""
    if entry is None or not isinstance(entry.get("answers"), list) or not entry["answers"]:
        report.add("empty_text", f"{where} has no answers")
        return None
    answers = [item.get("answer") if isinstance(item, Mapping) else None for item in entry["answers"]]
    majority = entry.get("multiple_choice_answer")
    if not all(isinstance(answer, str) for answer in [*answers, majority]):
        report.add("bad_entry", f"{where} has an answer that is no string: {[*answers, majority]}")
        return None
    types = {name: entry[name] for name in ("question_type", "answer_type") if name in entry}
    return {"answers": answers, "answer": majority, **types}
