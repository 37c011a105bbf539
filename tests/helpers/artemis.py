"""Small made-up annotations and images in ArtEmis' format."""

import csv
import io

from PIL import Image

from processing.artemis import EMOTIONS


COLUMNS = ["art_style", "painting", "emotion", "utterance", "repetition"]


def jpeg(size=(8, 8), **options) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 90).convert("RGB").save(buffer, "JPEG", **options)
    return buffer.getvalue()


JPEG = jpeg()


def make_rows(count: int, per_painting: int = 2, prefix: str = "p") -> list[dict]:
    """`count` paintings in two styles whose names sort differently with and without a slash after the style."""
    return [
        {
            "art_style": ["Pop", "Pop_Art"][i % 2],
            "painting": f"{prefix}.{i:03d}-x",
            "emotion": EMOTIONS[(i + k) % 9],
            "utterance": f"utterance {k} of painting {i}",
            "repetition": per_painting,
        }
        for i in range(count)
        for k in range(per_painting)
    ]


ROWS = make_rows(8)  # painting i has two annotations, on lines 2 i + 2 and 2 i + 3 of a file


def as_csv(rows: list[dict], columns: list[str] = COLUMNS, **options) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", **options)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def write_csv(path, rows: list[dict], columns: list[str] = COLUMNS):
    path.write_bytes(as_csv(rows, columns).encode())
    return path


def write_images(folder, rows: list[dict], extension: str = ".jpg"):
    for row in rows:
        path = folder / (painting_name(row) + extension)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG)
    return folder


def painting_name(row: dict) -> str:
    return f"{row['art_style']}/{row['painting']}"


def annotations_of(data) -> list[tuple[str, int, str]]:
    """Painting, label id and text of every annotation in all splits, sorted."""
    return sorted(
        (row["painting"], emotion, text)
        for split in data.values()
        for row in split.remove_columns([name for name in ("image",) if name in split.column_names])
        for emotion, text in zip(row["emotions"], row["explanations"], strict=True)
    )


def splits_of(data) -> dict[str, str]:
    return {painting: split for split in data for painting in data[split]["painting"]}
