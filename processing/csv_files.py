"""CSV files as their writer meant them, or not at all.

Other readers guess: a quotation mark that was lost or added makes them take several rows for one, rows that are too
short are filled up, of two columns of one name they take either. Here each of these is an error that names the line.
"""

import csv
import logging
import os
from collections.abc import Iterable, Iterator


logger = logging.getLogger(__name__)

CHECK = (
    'Check the quotes and commas there: text with a comma, a quote or a line break stands in quotes, " inside as "".'
)


def csv_rows(path: str | os.PathLike) -> Iterator[tuple[int, list[str]]]:
    """Yield the header and then the rows of a CSV file in UTF-8, each as (line where it begins, fields as text).

    Empty lines are passed over. No more than one row is held in memory, and no field may have more than 131,072
    characters (`csv.field_size_limit`).

    Raises:
        ValueError: bytes that are no UTF-8, NUL characters, quotes that do not match, rows with more or fewer values
            than there are columns, two columns of one name; naming file, line and remedy.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from _rows(path, file)
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(path)) from error


def not_utf8(path: str | os.PathLike) -> str:
    """What is wrong with a text file that cannot be read as UTF-8, with the first bad line, and what to do."""
    with open(path, "rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            return f"{path}: not UTF-8 text but UTF-16. Save the file in UTF-8, as with `iconv -f UTF-16 -t UTF-8`."
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                near = line[max(0, error.start - 10) : error.end + 10]
                return (
                    f"{path}, line {number}: not UTF-8 text ({near!r}). Save the file in UTF-8; if it is Latin-1, "
                    "with `iconv -f LATIN1 -t UTF-8`."
                )
    return f"{path}: not UTF-8 text. Save the file in UTF-8."


def shown(names: Iterable[str]) -> str:
    """Names of columns for a message, however long and strange they are."""
    names = ["".join(c if c.isprintable() else repr(c)[1:-1] for c in name[:40]) for name in names]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _rows(path: str | os.PathLike, file: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    quotes, line = 0, ""

    def checked_lines() -> Iterator[str]:
        nonlocal quotes, line
        for number, line in enumerate(file, 1):  # noqa: B007 - the last one is looked at below
            if "\0" in line:
                raise ValueError(
                    f"{path}, line {number}: a NUL character, as in damaged files and in UTF-16. Save the file "
                    "in UTF-8."
                )
            quotes += line.count('"')
            yield line

    reader = csv.reader(checked_lines(), strict=True)
    begin, columns = 1, None
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}, line {begin}: not well-formed CSV ({error}). {CHECK}") from error
        if fields is None:
            break
        if quotes % 2:
            raise ValueError(f"{path}, line {begin}: not well-formed CSV (an odd number of quotes). {CHECK}")
        if fields:
            if columns is None:
                columns = fields
                twice = sorted({name for name in columns if name and columns.count(name) > 1})
                if twice:
                    raise ValueError(f"{path}, line {begin}: two columns are named {shown(twice)}. Rename one.")
            elif fields[0][:1] == "\ufeff":
                raise ValueError(f"{path}, line {begin}: a byte order mark amid the file. Remove it.")
            elif len(fields) != len(columns):
                more = "more" if len(fields) > len(columns) else "fewer"
                raise ValueError(
                    f"{path}, line {begin}: {more} values ({len(fields)}) than columns ({len(columns)}). {CHECK}"
                )
            yield begin, fields
        begin, quotes = reader.line_num + 1, 0
    if line and line[-1] not in "\r\n":
        logger.warning("%s does not end in a line break: check that its last line is whole.", path)
