"""
Fetches the object crops and backgrounds of composite scenes, from Debian and npm packages by their names.

    python examples/fetch_scene_assets.py --output scene-assets
    python examples/fetch_scene_assets.py --output scene-assets --with_gpl     # also stamps and backgrounds

The folder gets `index.jsonl` (one line an image: file, noun, attributes, package, licence), `object_crops/` (RGBA PNG,
transparent borders trimmed, at most 256 px) and `backgrounds/` (JPEG, at most 800 px). Needs `apt-get` and `dpkg-deb`
(Debian and its derivatives) and `npm`; a package that was fetched, or a source that was finished, is not done again.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from transformers_glipv2.cli.arguments import ScriptParser, add_output_folder, check_paths
from transformers_glipv2.cli.errors import run
from transformers_glipv2.data.files import read_lines, replaced_file, write_text
from transformers_glipv2.data.scenes.colours import named_colour, recolour_way

NAMES = json.loads(Path(__file__).with_name("scene_asset_names.json").read_text(encoding="utf-8"))
MAX_OBJECT_CROP, MAX_BACKGROUND = 256, 800
MATERIALS = ("wooden", "glass", "plastic", "iron", "rattan", "concrete")
SKIN_TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")


@dataclass
class Asset:
    """One image of a package: how it is opened, what it shows, and what may be done with it."""

    name: str
    open: Callable[[], Image.Image]
    licence: str
    noun: str | None = None
    attributes: list[str] = field(default_factory=list)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_output_folder(parser, "folder for the images; keep it out of the repository")
    add("--with_gpl", action="store_true", help="also take sources under the GPL (say so in a card)")
    add("--without_drawings", action="store_true", help="leave out openclipart-png (131 MB, drawings)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = check_paths(parse_args(arguments))
    packages = options.output / "packages"
    packages.mkdir(parents=True, exist_ok=True)

    sources: dict[str, Callable[[], Iterable[Asset]]] = {
        "fluent-emoji-3d": lambda: fluent_emoji(packages),
        "noto-color-emoji": lambda: noto_emoji(packages),
        "twemoji": lambda: twemoji(packages),
        "sweethome3d-furniture": lambda: furniture(packages),
    }
    if not options.without_drawings:
        sources["openclipart-png"] = lambda: drawings(packages, known_nouns(options.output))
    for package in ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04"):
        sources[package] = lambda package=package: backgrounds(packages, package, "CC-BY-4.0, CC-BY-SA or CC0-1.0")
    if options.with_gpl:
        sources["tuxpaint-stamps-default"] = lambda: stamps(packages, known_nouns(options.output))
        sources["mate-backgrounds"] = lambda: backgrounds(packages, "mate-backgrounds", "GPL-2.0-or-later", "nature/")
    for name, images in sources.items():
        take(options.output, name, images)
    entries = [entry for name in sources for entry in read_index(part_file(options.output, name))]
    write_index(options.output / "index.jsonl", entries)
    object_crops = [entry for entry in entries if entry["kind"] == "object_crop"]
    print(
        f"{len(object_crops)} object crops of {len({entry['noun'] for entry in object_crops})} nouns and "
        f"{len(entries) - len(object_crops)} backgrounds in {options.output}"
    )


def take(folder: Path, source: str, assets: Callable[[], Iterable[Asset]]) -> None:
    """Clean and store the images of one source and write its part of the index; done once."""
    if part_file(folder, source).exists():
        return
    entries, unreadable = [], []
    for asset in tqdm(list(assets()), desc=source):
        try:
            image = asset.open()
        except (OSError, ValueError) as error:
            unreadable.append(f"{asset.name}: {error}")
            continue
        entry = {"source": source, "licence": asset.licence}
        if asset.noun is None:
            image = image.convert("RGB")
            image.thumbnail((MAX_BACKGROUND, MAX_BACKGROUND))
            entry |= {"kind": "background", "file": f"backgrounds/{source}/{asset.name}.jpg"}
        else:
            image = trimmed(image)
            if image is None or (source == "openclipart-png" and not is_clean_drawing(image)):
                continue
            way, hue = recolour_way(image)
            entry |= {
                "kind": "object_crop",
                "file": f"object_crops/{source}/{asset.name}.png",
                "noun": asset.noun,
                "attributes": asset.attributes,
                "colour": named_colour(image),
                "recolour": way,
                "hue": hue,
            }
        save(image, folder / entry["file"])
        entries.append(entry)
    if unreadable:
        print(f"{source}: {len(unreadable)} unreadable images left out; the first: {unreadable[0]}")
    write_index(part_file(folder, source), entries)


def trimmed(image: Image.Image) -> Image.Image | None:
    """An object crop without its transparent border, at most 256 px; `None` where it is small or nearly empty."""
    image = image.convert("RGBA")
    solid = image.getchannel("A").point(lambda level: 255 if level >= 96 else 0)
    box = solid.getbbox()
    if box is None:
        return None
    image, solid = image.crop(box), solid.crop(box)
    fraction = solid.histogram()[255] / (solid.width * solid.height)
    if min(solid.size) < 16 or fraction < 0.08:
        return None
    image.thumbnail((MAX_OBJECT_CROP, MAX_OBJECT_CROP), Image.Resampling.LANCZOS)
    return image if min(image.size) >= 12 else None


def is_clean_drawing(image: Image.Image) -> bool:
    """Whether a drawing has neither a painted background nor is a mere silhouette or outline."""
    small = np.asarray(image.resize((32, 32), Image.Resampling.NEAREST), dtype=float)
    solid = small[..., 3] >= 96
    flat = small[solid][:, :3].std(axis=0).max() < 14
    return 0.15 < solid.mean() < 0.94 and not flat and named_colour(image) != "black"


def save(image: Image.Image, path: Path) -> None:
    kind, options = ("PNG", {}) if path.suffix == ".png" else ("JPEG", {"quality": 92})
    with replaced_file(path) as temporary:
        image.save(temporary, format=kind, **options)


def part_file(folder: Path, source: str) -> Path:
    return folder / "packages" / f"{source}.jsonl"


def read_index(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_lines(path)] if path.exists() else []


def write_index(path: Path, entries: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))


def known_nouns(folder: Path) -> set[str]:
    """Nouns of the sources done so far, whose names are consistent; images of other sources need one of these."""
    parts = (part_file(folder, source) for source in ("fluent-emoji-3d", "sweethome3d-furniture"))
    return {entry["noun"] for part in parts for entry in read_index(part)}


# ---------------------------------------------------------------------------------------------------- the packages


def run_client(command: list[str], folder: Path, what: str) -> None:
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"`{command[0]}` is needed to fetch {what} and is not on the PATH; install it first.")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"`{' '.join(command)}` failed ({done.returncode}): {done.stderr.strip()[-600:]}")


def debian_package(packages: Path, name: str) -> Path:
    """The unpacked files of a Debian package."""
    target = packages / name
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory(dir=packages) as scratch:
        run_client(["apt-get", "download", name], Path(scratch), f"the Debian package {name}")
        archive = next(Path(scratch).glob("*.deb"))
        run_client(["dpkg-deb", "--extract", archive.name, "files"], Path(scratch), f"the Debian package {name}")
        os.replace(Path(scratch) / "files", target)
    return target


def npm_package(packages: Path, name: str) -> Path:
    """The unpacked files of an npm package."""
    target = packages / name.replace("/", "_").lstrip("@")
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory(dir=packages) as scratch:
        run_client(["npm", "pack", "--silent", name], Path(scratch), f"the npm package {name}")
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            archive.extractall(Path(scratch) / "files", filter="data")
        os.replace(Path(scratch) / "files" / "package", target)
    return target


# ------------------------------------------------------------------------------------------------------- the names


def emoji_nouns(packages: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(noun, code points as "1F34E-FE0F", record) of every emoji that shows an object with a plain name."""
    names = NAMES["emoji"]
    renamed = {short: noun for noun, shorts in names["rename"].items() for short in shorts}
    dropped, wanted = set(names["drop"]), set(names["subcategories"])
    records = json.loads((npm_package(packages, "emoji-datasource-google") / "emoji.json").read_text(encoding="utf-8"))
    for record in records:
        short, subcategory = record["short_name"], record["subcategory"]
        if short in renamed:
            noun = renamed[short]
        elif subcategory in names["whole_subcategories"]:
            if subcategory == "country-flag" and sum(map(ord, short)) % 6:
                continue
            noun = names["whole_subcategories"][subcategory]
        elif subcategory == "person-role" and re.match(r"(fe)?male-", short):
            noun = "woman" if short.startswith("female-") else "man"
        elif subcategory in wanted and short not in dropped and not short.startswith("clock"):
            noun = short.replace("_", " ")
        else:
            continue
        yield noun, record["unified"], record
        for tone in SKIN_TONES:
            # Roles come in one tone each, chosen by the code, so that people do not outnumber everything.
            if tone in record.get("skin_variations", {}) and (
                subcategory == "person" or SKIN_TONES[sum(map(ord, short)) % 5] == tone
            ):
                yield noun, record["skin_variations"][tone]["unified"], record


def fluent_emoji(packages: Path) -> Iterator[Asset]:
    folder = npm_package(packages, "@lobehub/fluent-emoji-3d") / "assets"
    for noun, code, _ in emoji_nouns(packages):
        plain = code.lower()
        for name in dict.fromkeys((plain, plain.replace("-fe0f", ""))):
            path = folder / f"{name}.webp"
            if path.exists():
                yield Asset(plain, lambda path=path: Image.open(path), "MIT", noun)
                break


def noto_emoji(packages: Path) -> Iterator[Asset]:
    files = debian_package(packages, "fonts-noto-color-emoji")
    # The font holds bitmaps of one size only: 109 pixels an em.
    font = ImageFont.truetype(str(next(files.rglob("NotoColorEmoji.ttf"))), 109)
    for noun, code, _ in emoji_nouns(packages):
        text = "".join(chr(int(point, 16)) for point in code.split("-"))
        yield Asset(code.lower(), lambda text=text: drawn(text, font), "OFL-1.1", noun)


def drawn(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One glyph of a colour font; several mean that the font does not know the sequence."""
    if font.getlength(text) > 150:
        raise ValueError(f"the font has no image for {text!r}")
    image = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(image).text((8, 8), text, font=font, embedded_color=True)
    return image


def twemoji(packages: Path) -> Iterator[Asset]:
    folder = npm_package(packages, "emoji-datasource-twitter") / "img" / "twitter" / "64"
    for noun, code, _ in emoji_nouns(packages):
        path = folder / f"{code.lower()}.png"
        if path.exists():
            yield Asset(path.stem, lambda path=path: Image.open(path), "CC-BY-4.0", noun)


def furniture(packages: Path) -> Iterator[Asset]:
    """Renders of 3D models, named in the catalogue inside each .sh3f (a zip)."""
    names = NAMES["furniture"]
    renamed = {old: noun for noun, olds in names["rename"].items() for old in olds}
    for catalogue in sorted(debian_package(packages, "sweethome3d-furniture").rglob("*.sh3f")):
        licence = "CC0-1.0" if catalogue.stem.endswith("CC-0") else "CC-BY-3.0"
        archive = zipfile.ZipFile(catalogue)
        text = archive.read("PluginFurnitureCatalog.properties").decode("latin-1")
        entries = dict(re.findall(r"^((?:name|icon)#\d+)=(.*?)\s*$", text, re.MULTILINE))
        for key, name in entries.items():
            icon = entries.get(key.replace("name", "icon"))
            if not key.startswith("name") or icon is None or name in names["drop"]:
                continue
            noun = renamed.get(name, name.lower())
            if len(noun.split()) > 3 or not re.fullmatch(r"[a-z' ]+", noun):
                continue
            words = name.lower().split()
            attributes = [word for word in MATERIALS if word in words and word not in noun]
            attributes += ["wooden"] if {"oak", "wood", "teck", "teak"} & set(words) and "wooden" not in words else []
            member = icon.lstrip("/")
            yield Asset(
                f"{catalogue.stem}_{Path(member).stem}",
                lambda archive=archive, member=member: Image.open(archive.open(member)),
                licence,
                noun,
                attributes,
            )


def drawings(packages: Path, nouns: set[str]) -> Iterator[Asset]:
    """Drawings whose file name begins with a known noun; the others have names of authors, languages and jokes."""
    root = debian_package(packages, "openclipart-png") / "usr/share/openclipart/png"
    unwanted = re.compile(
        r"(^|_)(bw|black|symbol|sign|icon|silhouette|outline|contour|bitten|core|logo|badge|map|flag)(_|$|\d)"
    )
    folders = ("food", "plants", "animals", "transportation/vehicles", "transportation/boating", "tools", "containers")
    folders += ("electronics", "recreation/music", "recreation/sports", "buildings", "office", "education", "clothing")
    for folder in folders:
        for path in sorted((root / folder).rglob("*.png")):
            words = [word for word in re.split(r"[_\-\d.]+", path.stem.lower()) if word]
            words = words[1:] if words and words[0] in ("a", "an", "the", "another", "simple", "cartoon") else words
            noun = next((" ".join(words[:n]) for n in (3, 2, 1) if " ".join(words[:n]) in nouns), None)
            if noun is not None and noun not in NAMES["drawings_drop"] and not unwanted.search(path.stem.lower()):
                name = "_".join(path.relative_to(root).with_suffix("").parts)
                yield Asset(name, lambda path=path: Image.open(path), "public domain", noun)


def stamps(packages: Path, nouns: set[str]) -> Iterator[Asset]:
    """Stamps whose sentence ("A red kangaroo.") is a known noun, alone or behind one adjective, or a single word."""
    root = debian_package(packages, "tuxpaint-stamps-default") / "usr/share/tuxpaint/stamps"
    for path in sorted(root.rglob("*.png")):
        description = path.with_suffix(".txt")
        if not description.exists() or path.relative_to(root).parts[0] in ("symbols", "space", "people"):
            continue
        sentence = description.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip().lower()
        match = re.fullmatch(r"an? ([a-z' ]+)[.!]?", sentence)
        words = match.group(1).split() if match else []
        noun = next((" ".join(words[n:]) for n in (0, 1) if " ".join(words[n:]) in nouns), None)
        if noun is None and len(words) == 1:
            noun = NAMES["synonyms"].get(words[0], words[0])
        if noun and noun not in NAMES["stamps_drop"]:
            name = "_".join(path.relative_to(root).with_suffix("").parts)
            yield Asset(name, lambda path=path: Image.open(path), "GPL-2.0-or-later", noun)


def backgrounds(packages: Path, package: str, licence: str, part: str = "") -> Iterator[Asset]:
    """Photographs without objects that scenes ask for, each under the licence that Debian states."""
    files = debian_package(packages, package)
    copyright_file = (files / "usr/share/doc" / package / "copyright").read_text(encoding="utf-8")
    for path in sorted(files.rglob("*.jpg")):
        if part in path.as_posix() and not any(name in path.stem for name in NAMES["backgrounds_drop"]):
            stated = re.search(rf"^Files:[^\n]*{re.escape(path.name)}.*?^License: *(\S+)", copyright_file, re.M | re.S)
            yield Asset(path.stem, lambda path=path: Image.open(path), stated[1] if stated else licence)


if __name__ == "__main__":
    run(main)
