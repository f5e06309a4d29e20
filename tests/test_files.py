"""Tables in text files, as other programs write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from landfuse.errors import MissingFileError, SceneError
from landfuse.files import read_cells, read_table


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_of_any_encoding_and_separator(encoding: str, separator: str, end: str, tmp_path: Path) -> None:
    half = "0.5" if separator == "," else "0,5"
    lines = [["id", "Größe, m", "class"], ["1", half, "Grünland"], ["2", "", "Äcker; hier"]]
    text = end.join(separator.join(f'"{cell}"' if {",", ";"} & {*cell} else cell for cell in line) for line in lines)
    (tmp_path / "t.csv").write_bytes((text + end + end).encode(encoding))
    table = read_table(tmp_path / "t.csv")
    assert table.columns == lines[0]
    assert [list(row.values()) for row in table.rows] == [lines[1], ["2", None, "Äcker; hier"]]
    assert table.lines == [2, 3]
    assert table.number(table.rows[0]["Größe, m"]) == 0.5


def test_what_excel_and_single_columns_look_like(tmp_path: Path) -> None:
    place = tmp_path / "t.txt"
    place.write_text("sep=;\na;b\n1,5;2\n", encoding="utf-8")
    assert read_table(place).rows == [{"a": "1,5", "b": "2"}]
    place.write_bytes("\r\n a_1 \r\nb_2\r\n".encode("utf-16"))
    assert [row for _, row in read_cells(place)[0]] == [[" a_1 "], ["b_2"]]
    place.write_text("a,b\n1,2,3\n4\n", encoding="utf-8")
    assert [(row["a"], row["b"]) for row in read_table(place).rows] == [("1", "2"), ("4", None)]
    place.write_text('a,b\n"1,234",2\n', encoding="utf-8")
    table = read_table(place)
    with pytest.raises(ValueError, match="1,234"):  # a thousand or one
        table.number(table.rows[0]["a"])
    place.write_bytes(b"")
    assert read_table(place).columns == []


def test_what_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"II*\0\x08\0\0\0" * 9)
    with pytest.raises(SceneError, match=r"t\.csv cannot be read: it is no text"):
        read_table(tmp_path / "t.csv")
    with pytest.raises(MissingFileError, match=r"there is no file .*gone\.csv"):
        read_table(tmp_path / "gone.csv")
    with pytest.raises(SceneError, match="cannot be read"):
        read_table(tmp_path)
