import json
import re
from pathlib import Path

import datasets
import numpy
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.commands.messages import one_line
from trimtab.corpora import FilesCorpus, HubCorpus, PythonDocs
from trimtab.corpus import Corpus, Document, Split, load_corpus
from trimtab.errors import ConfigError, TrimtabError

SHARES = {"calibration": 0.5, "validation": 0.2, "max_documents": None}
texts = st.lists(st.text(min_size=1, max_size=20), max_size=30)


def corpus_of(found: list[str]) -> Corpus:
    documents = [Document(str(index), text) for index, text in enumerate(found)]
    return Corpus("test", documents, calibration=0.5, validation=0.2)


def texts_in(corpus: Corpus, split: Split) -> set[str]:
    return {document.text for document in corpus.splits[split]}


def bare(text: str) -> str:
    lines = re.split(r"\r\n|\r|\n", text.replace("\ufeff", ""))
    return "\n".join(line.rstrip() for line in lines).strip()


@given(texts)
@settings(max_examples=50)
def test_splits_partition_the_distinct_texts(found):
    corpus = corpus_of(found)
    parts = [bare(document.text) for split in Split for document in corpus.splits[split]]
    assert sorted(parts) == sorted({bare(text) for text in found if bare(text)})


@given(texts, texts)
@settings(max_examples=50)
def test_more_documents_move_none_of_the_others(first, more):
    alone, among = corpus_of(first), corpus_of(first + more)
    for split in Split:
        assert {*map(bare, texts_in(alone, split))} <= {*map(bare, texts_in(among, split))}


@pytest.mark.parametrize(
    "saved",
    ["{}\n", " \n\n{}", "{}  \n \n", "\t{}\r\n", "\ufeff{}", "\n\ufeff{}\ufeff", " \ufeff{}"],
)
def test_a_copy_saved_by_another_editor_is_the_same_document(saved):
    originals = [f"# Title {number}\n\n    indented\n" for number in range(40)]
    copies = [saved.format(text.replace("\n", " \r\n")) for text in originals]
    alone, among = corpus_of(originals), corpus_of(originals + copies)
    for split in Split:
        assert {*map(bare, texts_in(among, split))} == {*map(bare, texts_in(alone, split))}
    assert sum(map(len, among.splits.values())) == len(originals)


def test_white_space_within_a_text_tells_documents_apart():
    corpus = corpus_of(["if a:\n    b\nc", "if a:\n    b\n    c", "if a:\n\n    b\nc"])
    assert sum(map(len, corpus.splits.values())) == 3


@given(texts, st.randoms())
@settings(max_examples=50)
def test_the_digest_depends_on_the_texts_and_not_on_their_order_or_copies(found, random):
    shuffled = found + found
    random.shuffle(shuffled)
    assert corpus_of(found).digest == corpus_of(shuffled).digest
    assert corpus_of([*found, "one more, longer than any other text"]).digest != (
        corpus_of(found).digest
    )


def test_shares_are_about_what_was_asked_for():
    corpus = corpus_of([f"text {n}" for n in range(2000)])
    sizes = [len(corpus.splits[split]) / 2000 for split in Split]
    assert sizes == pytest.approx([0.5, 0.2, 0.3], abs=0.04)


def test_shares_that_are_no_numbers_are_refused():
    with pytest.raises(TrimtabError, match="calibration='x' and validation=0.2: expected shares"):
        Corpus("test", [Document("a", "text")], calibration="x", validation=0.2)


TABLE = pandas.DataFrame({"text": ["one", "two"], "label": ["a", "b"]})


@pytest.mark.parametrize(
    "texts",
    [
        TABLE,
        datasets.Dataset.from_pandas(TABLE),
        datasets.Dataset.from_pandas(TABLE).to_iterable_dataset(),
        TABLE.to_dict("list"),
        TABLE["text"].to_dict().keys(),
        "one text",
        b"bytes",
        numpy.array("one text"),
        None,
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_yields_no_texts_is_refused_in_one_line(texts):
    for make in (Corpus.for_calibration, Corpus.for_test):
        with pytest.raises(TrimtabError, match=r"^texts=.{1,60}: expected a list of texts, or a C"):
            make(texts)
    with pytest.raises(TrimtabError, match=r"^texts holds .{1,60}: expected texts alone$"):
        Corpus.for_test(["text", texts if not isinstance(texts, str) else 1])


@pytest.mark.parametrize(
    "column", [TABLE["text"], TABLE["text"].to_numpy(), datasets.Dataset.from_pandas(TABLE)["text"]]
)
def test_a_column_of_a_table_holds_texts(column):
    assert Corpus.for_test(column).digest == Corpus.for_test(["one", "two"]).digest


def test_a_split_is_named_or_refused():
    corpus = Corpus.for_test(["one"])
    assert corpus.documents("test") == corpus.documents(Split.test)
    with pytest.raises(ConfigError, match=r"^split=tests: expected one of .* did you mean test\?$"):
        corpus.documents("tests")


def test_an_empty_split_is_refused_by_name():
    with pytest.raises(TrimtabError, match="no document in its test split"):
        corpus_of([]).documents(Split.test)


def test_python_docs_have_text_for_every_split():
    corpus = load_corpus(PythonDocs(calibration=0.7, validation=0.1, max_documents=None))
    assert all(corpus.documents(split) for split in Split)
    assert sum(len(document.text) for document in corpus.documents(Split.test)) > 50_000


def test_files_of_all_kinds_are_read(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "deep" / "b.md").write_text("# marked down")
    lines = [json.dumps({"body": "line one"}), "", json.dumps({"body": "line\u2028two"})]
    (tmp_path / "c.jsonl").write_text("\n".join(lines) + "\n")
    config = FilesCorpus(glob=str(tmp_path / "**" / "*.*"), text_field="body", **SHARES)
    corpus = load_corpus(config)
    found = {document.text for split in Split for document in corpus.splits[split]}
    assert found == {"plain", "# marked down", "line one", "line\u2028two"}


def test_max_documents_takes_the_first(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    pattern = str(tmp_path / "*.txt")
    config = FilesCorpus(**{**SHARES, "glob": pattern, "text_field": "text", "max_documents": 2})
    corpus = load_corpus(config)
    found = {document.text for split in Split for document in corpus.splits[split]}
    assert found == {"a", "b"}


def test_documents_that_are_left_out_and_too_few_to_divide_are_told(tmp_path, capsys):
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text(f"text {number % 18}" if number else " \n")
    config = FilesCorpus(glob=str(tmp_path), text_field="text", **SHARES)
    corpus = load_corpus(config)
    assert (corpus.copies, corpus.blank) == (11, 1)
    told, warning = capsys.readouterr().err.splitlines()
    assert told.endswith(" test documents; left out, copies of others: 11, without text: 1)")
    assert " has 18 documents to divide: a part may hold too little text, or none; " in warning
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"other text {number}")
    load_corpus(config)
    assert "Warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.txt",
            "café crème".encode("iso-8859-1"),
            "as UTF-8 text: invalid continuation byte at byte 3; if it is ISO-8859-1, convert it: ",
        ),
        ("x.txt", "text".encode("utf-16"), "it is UTF-16, convert it: iconv -f UTF-16 -t UTF-8"),
        ("x.txt", "text".encode("utf-16-le"), "holds NUL characters: if it is UTF-16, convert it"),
        ("x.txt", "text".encode("utf-32-be"), "holds NUL characters: if it is UTF-32, convert it"),
        *(
            ("x.jsonl", "\ufeff[]".encode(f"utf-32-{order}"), "it is UTF-32, .* iconv -f UTF-32 -t")
            for order in ("le", "be")
        ),
        ("x.jsonl", b'{"text": null}', "line 1: the field 'text' is null: drop the record, or"),
        ("x.jsonl", b'{"text": "a"}\n{broken', "line 2: not JSON"),
        (
            "x.jsonl",
            b'{"text": "a", "n": ' + b"9" * 5000 + b"}",
            "line 1: JSON that cannot be read",
        ),
        ("x.jsonl", b"\n" + b"[" * 99999, "line 2: JSON that cannot be read: .* drop that field"),
        ("x.jsonl", b'{"body": "a"}', r"no text in the field 'text' \(found: body\)"),
        ("x.jsonl", b'{"text": ["a"]}', "line 1: the field 'text' holds a list: expected a text"),
        ("x.jsonl", b"[1, 2]", "no text in the field 'text'"),
        ("x.txt", b"  \n", "holds no text"),
        ("x.pdf", b"a", "is none of .txt, .md and .jsonl"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    config = FilesCorpus(glob=str(tmp_path / "*"), text_field="text", **SHARES)
    with pytest.raises(TrimtabError, match=message) as error:
        load_corpus(config)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("pattern", ["texts", "texts/**/*.txt", "**/texts/**/*", "texts/*/**"])
def test_links_that_lead_above_are_followed_once(monkeypatch, tmp_path, pattern):
    monkeypatch.chdir(tmp_path)
    below = tmp_path / "texts" / "below"
    below.mkdir(parents=True)
    (below / "one.txt").write_text("one")
    (below / "again.txt").symlink_to("one.txt")
    (below / ".hidden").mkdir()
    (below / ".hidden" / "two.txt").write_text("two")
    (below / "self").symlink_to(".")
    (below / "up").symlink_to("..")
    found = [one.name for one in FilesCorpus(glob=pattern, **SHARES).documents()]
    assert found == ["texts/below/again.txt"]


def test_a_file_whose_own_name_says_nothing_is_read_by_its_link(tmp_path):
    (tmp_path / "a1b2").write_text("one")
    (tmp_path / "one.txt").symlink_to("a1b2")
    (tmp_path / "a2b3.txt").write_text("two")
    (tmp_path / "z.txt").symlink_to("a2b3.txt")
    (tmp_path / "again.txt").symlink_to("one.txt")
    found = FilesCorpus(glob=str(tmp_path), **SHARES).documents()
    assert [(Path(one.name).name, one.text) for one in found] == [
        ("a2b3.txt", "two"), ("again.txt", "one")
    ]  # fmt: skip


def test_folders_that_links_lead_to_are_read(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "elsewhere" / "[a]").mkdir(parents=True)
    (tmp_path / "elsewhere" / "[a]" / "one.txt").write_text("one")
    (tmp_path / "texts" / "link").symlink_to(tmp_path / "elsewhere")
    for pattern in (tmp_path / "texts", tmp_path / "*" / "**" / "[[]a]" / "**" / "*.txt"):
        assert [one.text for one in FilesCorpus(glob=str(pattern), **SHARES).documents()] == ["one"]


def test_a_name_that_is_no_text_is_shown_escaped(tmp_path):
    (tmp_path / "caf\udce9.txt").write_bytes(b"one")
    (found,) = FilesCorpus(glob=str(tmp_path), **SHARES).documents()
    assert found.name == f"{tmp_path}/caf\\udce9.txt"
    (tmp_path / "caf\udce9.txt").write_bytes(b"\xe9")
    with pytest.raises(TrimtabError) as error:
        list(FilesCorpus(glob=str(tmp_path), **SHARES).documents())
    assert f"{tmp_path}/caf\\udce9.txt cannot be read as UTF-8 text" in one_line(error.value)


def test_brackets_in_the_name_of_a_folder_come_with_how_they_are_written(tmp_path):
    (folder := tmp_path / "b" / "[v1]").mkdir(parents=True)
    (folder / "one.txt").write_text("one")
    with pytest.raises(ConfigError) as error:
        list(FilesCorpus(glob=str(folder / "*.txt"), **SHARES).documents())
    write = f"{tmp_path}/b/[[]v1]"
    assert str(error.value).endswith(f"their letters: for {folder} write {write}")
    assert [one.text for one in FilesCorpus(glob=f"{write}/*.txt", **SHARES).documents()] == ["one"]


def texts_of(glob: str) -> set[str]:
    corpus = load_corpus(FilesCorpus(glob=glob, text_field="text", **SHARES))
    return {document.text for split in Split for document in corpus.splits[split]}


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    line = json.dumps({"text": "same"})
    marked = json.dumps({"text": "\ufeffsame"})  # escaped
    (tmp_path / "a.txt").write_text("same", "utf-8")
    (tmp_path / "b.md").write_text("same", "utf-8-sig")
    # Two files with marks, one after the other; and a mark within a field.
    (tmp_path / "c.jsonl").write_text(f"\ufeff{line}\n\ufeff{line}\n{marked}\n\ufeff", "utf-8")
    assert texts_of(f"{tmp_path}/*") == {"same"}
    assert Corpus.for_test(["\ufeffsame", "same"]).digest == Corpus.for_test(["same"]).digest
    joined, alone = (Corpus.for_test([f"a\n{mark}b"]) for mark in ("\ufeff", ""))
    assert joined.digest == alone.digest


def test_the_kind_of_newline_of_a_file_is_no_part_of_its_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n")
    (tmp_path / "b.txt").write_bytes(b"one\r\ntwo\r\n")
    assert texts_of(f"{tmp_path}/*") == {"one\ntwo\n"}


def test_a_folder_is_all_the_text_below_it(tmp_path):
    folder = tmp_path / "texts [1]"
    (folder / "deep.md").mkdir(parents=True)
    (folder / "a.txt").write_text("plain")
    (folder / "deep.md" / "b.md").write_text("deep")
    (folder / "deep.md" / "c.jsonl").write_text(json.dumps({"text": "line"}))
    (folder / "d.png").write_bytes(b"\xff")
    assert texts_of(str(folder)) == texts_of(f"{folder}/") == {"plain", "deep", "line"}
    assert texts_of(str(folder / "a.txt")) == {"plain"}
    with pytest.raises(ConfigError, match=r"no file matches, only folders: end it in /\*\*/"):
        texts_of(f"{tmp_path}/t*")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"none of .txt, .md, .jsonl below it, hidden .* aside"):
        texts_of(str(tmp_path / "empty"))


def test_the_home_folder_may_be_written_short(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("plain")
    assert texts_of("~") == texts_of("~/*.txt") == {"plain"}
    with pytest.raises(ConfigError, match="no file matches$"):
        texts_of("~nobody-of-that-name/a.txt")


def test_what_is_neither_a_file_nor_a_folder_is_named_and_not_left_out(tmp_path):
    with pytest.raises(ConfigError, match="corpus.glob=/dev/null: /dev/null is no file, or a link"):
        texts_of("/dev/null")
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "b.txt").symlink_to(tmp_path / "not mounted.txt")
    for glob in (tmp_path, tmp_path / "*.txt", tmp_path / "b.txt"):
        with pytest.raises(ConfigError, match=f"{tmp_path}/b.txt is no file, or a link to none"):
            texts_of(str(glob))


def test_a_field_of_records_is_refused_where_no_file_holds_records(tmp_path):
    (tmp_path / "a.txt").write_text("plain")
    config = FilesCorpus(glob=str(tmp_path), text_field="body", **SHARES)
    with pytest.raises(ConfigError, match=r"corpus.text_field=body: is of \.jsonl files"):
        load_corpus(config)


def test_no_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no file matches"):
        FilesCorpus(glob=str(tmp_path / "*.txt"), text_field="text", **SHARES)


def hub(name: str, text_field: str = "text") -> HubCorpus:
    return HubCorpus(
        name=name, subset=None, split="train", revision=None, text_field=text_field, **SHARES
    )


@pytest.mark.parametrize("place", ["saved", "of [mine]"])
def test_a_dataset_that_was_saved_to_disk_is_loaded(tmp_path, monkeypatch, place):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"text": "one"}, {"text": "two"}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / place))
    corpus = hub(str(tmp_path / place))
    assert [document.text for document in corpus.documents()] == ["one", "two"]
    corpus = HubCorpus(name=str(tmp_path / place), split="test")
    with pytest.raises(ConfigError, match="cannot be loaded: Unknown split"):
        load_corpus(corpus)


@pytest.mark.parametrize("subset", [None, "fr"])
def test_the_subsets_of_a_dataset_are_named(tmp_path, monkeypatch, subset):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    kinds = [f"- {{config_name: {name}, data_files: {name}.jsonl}}" for name in ("en", "de")]
    (tmp_path / "README.md").write_text("\n".join(["---", "configs:", *kinds, "---"]))
    for name in ("en", "de"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "one"}\n')
    expected = "cannot be loaded: write corpus.subset=NAME; there are: en, de$"
    with pytest.raises(ConfigError, match=expected):
        load_corpus(HubCorpus(name=str(tmp_path), subset=subset))


def test_a_dataset_is_loaded_from_a_local_folder(tmp_path):
    rows = [{"text": f"row {n}", "id": n} for n in range(5)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = load_corpus(hub(str(tmp_path)))
    found = {document.text for split in Split for document in corpus.splits[split]}
    assert found == {f"row {n}" for n in range(5)}
    with pytest.raises(TrimtabError, match="the field 'id' holds a number: expected a text"):
        load_corpus(hub(str(tmp_path), "id"))
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    with pytest.raises(TrimtabError, match="the field 'text' is null: drop the record"):
        load_corpus(hub(str(tmp_path)))


def test_the_folder_of_a_dataset_may_be_written_short(monkeypatch, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "train.jsonl").write_text('{"text": "mine"}')
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [document.text for document in hub("~/texts").documents()] == ["mine"]


def test_a_dataset_that_cannot_be_had_is_named():
    with pytest.raises(ConfigError, match="corpus.name=nobody/nothing: cannot be loaded"):
        load_corpus(hub("nobody/nothing"))


def test_a_dataset_that_fails_without_a_word_is_named(monkeypatch):
    def fails(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr("datasets.load_dataset", fails)
    with pytest.raises(ConfigError, match="=a/b: cannot be loaded: NotImplementedError"):
        load_corpus(hub("a/b"))


IMAGE = [{"bytes": b"none", "path": None}]


def test_of_a_dataset_the_column_of_texts_alone_is_decoded(tmp_path):
    features = {"text": datasets.Value("string"), "image": datasets.Image()}
    beside = datasets.Features(features)
    rows = datasets.Dataset.from_dict({"text": ["one"], "image": IMAGE}, features=beside)
    rows.to_parquet(str(tmp_path / "train.parquet"))
    assert [document.text for document in hub(str(tmp_path)).documents()] == ["one"]
    with pytest.raises(TrimtabError, match=r"no text in the field 'x' \(found: text, image\)"):
        load_corpus(hub(str(tmp_path), "x"))
    with pytest.raises(TrimtabError, match=r"\[0\]: the field 'image' cannot be read \(.*\)"):
        load_corpus(hub(str(tmp_path), "image"))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.jsonl": '{"text": "\\ud83d"}'}, "JSON from file '.*a.jsonl': .* surrogate pair .*"),
        ({"a.parquet": "PAR1xxxx"}, "'.*a.parquet': Parquet magic bytes not found .*"),
        ({"a.csv": "text,n\na,1\nb,2,3,4\n"}, "'.*a.csv': .* Expected 2 fields in line 3, saw 4"),
        ({"a.csv": "text,n\na,1\n", "b.csv": "text,m,n\nb,x,1\n"}, "Schema at .* text: .*"),
        ({"a.txt": b"caf\xe9".decode("latin-1")}, "'utf-8' codec can't decode byte 0xe9 .*"),
    ],
    ids=["surrogate", "parquet", "csv", "columns", "latin-1"],
)
def test_a_file_of_a_dataset_that_cannot_be_read_is_one_line_with_the_reason(
    tmp_path, capfd, files, reason
):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=rf"^corpus\.name=\S+: cannot be loaded: .*{reason}$"):
        load_corpus(hub(str(tmp_path)))
    assert capfd.readouterr().err == ""


def test_half_a_character_is_refused_with_its_place(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": "not \\ud83d this"}\n')
    with pytest.raises(TrimtabError, match=r"a\.jsonl:2: the character 4 is a lone surrogate"):
        load_corpus(FilesCorpus(glob=str(tmp_path / "*.jsonl")))
    (tmp_path / "a.jsonl").write_text('{"text": "whole: \\ud83d\\ude00"}\n')
    splits = load_corpus(FilesCorpus(glob=str(tmp_path / "*.jsonl"))).splits
    assert [one.text for found in splits.values() for one in found] == ["whole: \U0001f600"]
