"""`detect_dialect` says how a csv or tsv file is written, so that it is read with the right cells."""

import bz2
import csv
import gzip
import io
import lzma

import pyarrow as pa
import pytest

from stages.data.dialect import Dialect, detect_dialect, detect_encoding
from stages.runtime.errors import UserError

HEADER = ["id", "text", "label"]
TEXTS = {
    "plain": ["a good film", "a long film", "not for me", "once more"],
    "commas": ["good, but long", "well, well, well", "no, thanks, bye", "one, two"],
    "semicolons": ["good; long", "so; so; so", "no", "yes; no"],
    "bars": ["a|b|c", "|", "a|b", "none"],
    "apostrophes": ["it's fine", "'tis so", "the dogs' food, 'so' it's said", "don't"],
    "quotes": ['"Go", he said', 'a 5" screen, "new"', '"so"', 'she said "no"'],
    "lines": ["Dear Sir,\n\nno.", "a\nb", "one; two,\nthree", "last"],
    "numbers": ["3,5", "1,25", "10,0", "7,75"],
    "Chinese": ["很好，谢谢", "不好,贵", "还可以;也许", "再见"],
    "markup": ['<a href="x?a=1;b=2|c">go</a>, now', '{"a": [1, 2], "b": 3}', "<br>", "x = 'y, z'; --"],
}


def write(path, rows, sep=",", quotechar='"', quoting=csv.QUOTE_MINIMAL, encoding="utf-8"):
    """Write a csv file -> its dialect apart from the encoding."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=sep, quotechar=quotechar, quoting=quoting).writerows(rows)
    path.write_bytes(text.getvalue().encode(encoding))


def make_rows(texts, count):
    labels = ["pos", "neg", "neg", "pos"]
    return [HEADER] + [[f"{i:03d}", texts[i % 4], labels[i % 4]] for i in range(count)]


def read_cells(path, dialect):
    text = path.read_bytes().decode(dialect.encoding)
    lines = io.StringIO(text, newline="")
    return list(csv.reader(lines, delimiter=dialect.sep, quotechar=dialect.quotechar))


@pytest.mark.parametrize("texts", TEXTS)
@pytest.mark.parametrize("sep", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quotechar", ['"', "'"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_every_cell_is_read_with_the_detected_separator_and_quote(tmp_path, texts, sep, quotechar, quoting):
    for count in (2, 4, 200):
        rows = make_rows(TEXTS[texts], count)
        write(tmp_path / "a.csv", rows, sep, quotechar, quoting)
        assert read_cells(tmp_path / "a.csv", detect_dialect(tmp_path / "a.csv")) == rows


def test_a_file_of_a_single_column_is_read_with_the_separator_of_its_extension(tmp_path):
    for name, sep in (("a.csv", ","), ("a.TSV", "\t"), ("a.tsv.gz", "\t")):
        content = b"text\na; b\nc | d\n"
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        assert detect_dialect(tmp_path / name) == Dialect(sep, "utf-8", '"', True)


def test_quotes_in_a_tsv_file_without_quoting_do_not_hide_its_rows(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"No" he said\tneg\n"open\tpos\nfine\tneg\n')
    rows = read_cells(tmp_path / "a.tsv", detect_dialect(tmp_path / "a.tsv"))
    assert rows[1:] == [['"No" he said', "neg"], ['"open', "pos"], ["fine", "neg"]]


def test_some_short_or_long_rows_do_not_hide_the_separator(tmp_path):
    rows = [f"text {i};neg" for i in range(20)]
    (tmp_path / "a.csv").write_text("\n".join(["text;label", "a, b", *rows, "a;b;c", ""]))
    assert detect_dialect(tmp_path / "a.csv").sep == ";"


def test_a_sample_that_ends_within_quotes_is_no_evidence_against_them(tmp_path):
    rows = [[f"{i}", "one,\n" * 50, "pos"] for i in range(2000)]
    for quotechar in ('"', "'"):
        write(tmp_path / "a.csv", [HEADER, *rows], ";", quotechar)
        assert detect_dialect(tmp_path / "a.csv") == Dialect(";", "utf-8", quotechar, True)


@pytest.mark.parametrize("content", ["", "\n", "text,label\n", "text"])
def test_a_file_without_rows_has_the_usual_dialect(tmp_path, content):
    (tmp_path / "a.csv").write_text(content)
    assert detect_dialect(tmp_path / "a.csv") == Dialect(",", "utf-8", '"', True)


# --- encodings ---

FRENCH = "le café était très bon, mais l’été à Noël coûte 20 €"
WORDS = {
    "utf-8-sig": FRENCH, "cp1252": FRENCH, "mac_roman": FRENCH, "utf-16": FRENCH, "utf-16-le": FRENCH, "utf-32": FRENCH,
    "latin-1": "le café était très bon mais à Noël", "cp850": "über die Straße für größere Mädchen",
    "cp1250": "příliš žluťoučký kůň úpěl", "cp1254": "çok güzel şey değil İstanbul ığdır",
    "cp1251": "этот фильм был очень хороший", "koi8_r": "этот фильм был очень хороший", "cp1253": "το ξενοδοχείο ήταν",
    "gb18030": "这部电影真的很好看我喜欢演员的表演", "big5": "這部電影真的很好看我喜歡演員的表演",
    "shift_jis": "この映画はとても良かった、しかし結末が残念", "euc_jp": "この映画はとても良かった、しかし結末が残念",
    "cp949": "이 영화는 정말 재미있었지만 결말이 아쉬웠어요",
}  # fmt: skip


@pytest.mark.parametrize("text", ["Price 5 €", "Das kostet 5 € – “toll”", "“quote” it’s", "Hi – she said … 5 €"])
def test_few_signs_are_those_of_windows_and_not_of_an_old_system(text):
    assert detect_encoding(f"text;label\n{text};pos\nfine;neg\n".encode("cp1252")) == "cp1252"


@pytest.mark.parametrize("encoding", WORDS)
def test_the_detected_encoding_gives_the_text_back(tmp_path, encoding):
    rows = [["text", "label"], *[[WORDS[encoding], label] for label in ("pos", "neg", "pos")]]
    write(tmp_path / "a.csv", rows, ";", encoding=encoding)
    dialect = detect_dialect(tmp_path / "a.csv")
    assert (dialect.sep, dialect.has_header) == (";", True)
    assert [[cell.lstrip("\ufeff") for cell in row] for row in read_cells(tmp_path / "a.csv", dialect)] == rows


@pytest.mark.parametrize("word", ["café", "naïve", "“great”", "it’s", "20 €", "Müller", "ok…", "Peña"])
def test_a_single_letter_that_is_not_ascii_is_windows_1252_however_late_it_is(tmp_path, word):
    rows = [["text", "label"], *[[f"a film, number {i}", "pos"] for i in range(5000)], [f"a {word} film", "neg"]]
    write(tmp_path / "a.csv", rows, encoding="cp1252")
    assert detect_dialect(tmp_path / "a.csv").encoding == "cp1252"


@pytest.mark.parametrize("encoding", ["cp1251", "cp1250", "cp850"])
def test_ascii_rows_do_not_hide_the_encoding_of_the_others(tmp_path, encoding):
    others = [f"{WORDS[encoding]} {i}" for i in range(20)]
    rows = [
        ["text", "label"],
        *[[f"a film, number {i}", "pos"] for i in range(400)],
        *[[text, "neg"] for text in others],
    ]
    write(tmp_path / "a.csv", rows, encoding=encoding)
    assert read_cells(tmp_path / "a.csv", detect_dialect(tmp_path / "a.csv")) == rows


@pytest.mark.parametrize("wrong", [b"caf\xe9,neg\n", b"caf\xc3"])
def test_a_wrong_byte_in_utf_8_does_not_make_it_another_encoding(tmp_path, wrong):
    (tmp_path / "a.csv").write_bytes("text,label\ncafé größer,pos\nnaïve Straße,neg\n".encode() + wrong)
    with pytest.raises(UserError, match=rf"a\.csv: UTF-8, but .* is 0x{wrong[3]:02x} in line 4; correct it"):
        detect_dialect(tmp_path / "a.csv")


def test_bytes_that_are_no_text_are_an_error(tmp_path):
    (tmp_path / "a.csv").write_bytes(bytes(range(256)) * 9)
    with pytest.raises(UserError, match=r"a\.csv: not text in a known encoding"):
        detect_dialect(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("ending", "compress"),
    [
        (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress),
        (".zst", lambda content: pa.Codec("zstd").compress(content, asbytes=True)),
    ],
)  # fmt: skip
def test_a_compressed_file_is_looked_into(tmp_path, ending, compress):
    path = tmp_path / f"a.csv{ending}"
    path.write_bytes(compress("text;label\nun café;a\nun thé;a\n".encode("cp1252")))
    assert detect_dialect(path) == Dialect(";", "cp1252", '"', True)
    path.write_bytes(b"text;label")
    with pytest.raises(UserError, match=r"not readable \(.*\); fetch or copy it whole"):
        detect_dialect(path)


# --- headers ---


@pytest.mark.parametrize(
    ("content", "has_header"),
    [
        ("text,label\na film,pos\nb film,pos\n", True),
        ("a film,pos\nb film,neg\nc film,pos\n", False),
        ("a film,1\nb film,0\n", False),
        ("17,a film,pos\n18,b film,neg\n", False),
        ("id,text,label\n1,a,x\n2,b,y\n", True),
        ("Pos,Neg\npos,neg\nneg,pos\n", True),
        ("text,label\na,b\ntext,label\nc,b\n", True),
        ("0,1\na film,1\nb film,0\n", True),
        (",0,1\n0,a film,1\n1,b film,0\n", True),
        ("id,1,2,text\n7,1,2,a\n8,2,1,b\n", True),
        ("text,\na,\nb,\n", True),
        ("3,5;pos\n1,25;pos\n", False),
        ("好看,正面\n难看,负面\n喜欢,正面\n", False),
        ("text,label\n", True),
        ("message,spam\n" + "".join(f"a longer text {i},{'spam' if i % 2 else 'ham'}\n" for i in range(20)), True),
        ("Great,pos\n" + "".join(f"a longer text {i},pos\n" if i % 9 else "Bad,neg\n" for i in range(20)), False),
    ],
    ids=["names", "a class again", "numbers", "an id", "names above numbers", "a class in another case", "joined files",
         "columns counted", "an index and columns counted", "names and numbers", "empty cells", "decimal commas",
         "Chinese", "no rows", "a column called as its class", "a text of one word"],
)  # fmt: skip
def test_the_first_row_is_a_header_unless_it_looks_like_the_others(tmp_path, content, has_header):
    (tmp_path / "a.csv").write_text(content)
    assert detect_dialect(tmp_path / "a.csv").has_header is has_header
