"""One table that is a dataset a domain, by what is written in a column; each dataset with its own teacher."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from storage.cache.verify import verify
from storage.errors import BadRequest, MissingSource, StaleCache, StillroomError
from storage.language.tokenizer import decoder
from student_train.running.train import train_students
from tests.chats.toys import CHATML, write_lines, write_model
from tests.teacher_cache.toys import Silent, build, contents, write_job
from tests.texts.toys import TEACHER, looking_teacher, request, small_encoder, texts, word_tokenizer

SUBJECTS = ["law", "code"]
BY_SUBJECT = 'domain = "subject"\ndomains = ["law", "code"]\n'


def rows() -> list[dict[str, str]]:
    """Return 60 rows of three classes, three of law and one of code in turn."""
    return [
        {"subject": SUBJECTS[i % 4 == 3], "label": label, "text": text, "id": str(i)}
        for i, (label, text) in enumerate(texts(60))
    ]


def write_table(folder: Path, suffix: str, table: list[dict[str, str]]) -> None:
    path = folder / f"texts{suffix}"
    match suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in table))
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(table), path, row_group_size=7)
        case ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(table[0]))
                writer.writeheader()
                writer.writerows(table)
    (folder / "looking.py").write_text(TEACHER)
    (folder / "tokenizer.json").write_bytes(word_tokenizer())


def labelled(suffix: str = ".jsonl", extra: str = BY_SUBJECT, name: str = "texts") -> str:
    return (
        f'[[dataset]]\nname = "{name}"\nkind = "text"\npath = "texts{suffix}"\ncolumn = "text"\nlabel = "label"\n'
        f'length = 12\ntokenizer = "tokenizer.json"\nvalidation = 0.25\nrows_per_shard = 16\n{extra}\n'
    )


def blocks(suffix: str = ".jsonl", extra: str = BY_SUBJECT) -> str:
    return (
        f'[[dataset]]\nname = "texts"\nkind = "text"\npath = "texts{suffix}"\ncolumn = "text"\nblock = 16\n'
        f'tokenizer = "tokenizer.json"\nvalidation = 0.25\nrows_per_shard = 4\npack = false\n{extra}\n'
    )


def stored(cache: Cache, dataset: str) -> list[str]:
    """Return the text of each row of a dataset, in order."""
    decode = decoder((Path(cache.url) / dataset / "tokenizer.json").read_bytes())
    shards = sorted(cache.committed(dataset))
    return [
        decode(row.tolist()).split("<|endoftext|>")[0] for shard in shards for row in cache.read_rows(dataset, shard)
    ]


def of(subject: str) -> list[str]:
    return [row["text"] for row in rows() if row["subject"] == subject]


@pytest.mark.parametrize(
    ("section", "suffix"),
    [(labelled, ".jsonl"), (labelled, ".parquet"), (labelled, ".csv"), (blocks, ".jsonl"), (blocks, ".parquet")],
)
def test_each_row_of_a_table_is_in_the_dataset_of_its_domain(tmp_path: Path, section: object, suffix: str) -> None:
    write_table(tmp_path, suffix, rows())
    assert build(write_job(tmp_path, section(suffix))).exit_code == 0  # type: ignore[operator]
    cache = Cache.open(str(tmp_path / "cache"))
    assert sorted(cache.catalogue().datasets) == ["texts-code", "texts-law"]
    spelled = {subject: stored(cache, f"texts-{subject}") for subject in SUBJECTS}
    whole = decoder(word_tokenizer())
    assert whole
    assert [len(found) for found in spelled.values()] == [45, 15]
    for subject, found in spelled.items():
        # a row is cut at 12 tokens
        assert all(text.startswith(kept) for kept, text in zip(found, of(subject), strict=True))
    ids = [cache.samples().of(f"texts-{subject}")["sample_id"].n_unique() for subject in SUBJECTS]
    assert ids == [45, 15]
    assert verify(cache).bad == ()


def test_chats_are_divided_too(tmp_path: Path) -> None:
    write_model(tmp_path / "model", CHATML)
    chats = [
        {
            "subject": SUBJECTS[i % 4 == 3],
            "messages": [{"role": "user", "content": "to be?"}, {"role": "assistant", "content": f"or not {i}"}],
        }
        for i in range(12)
    ]
    (tmp_path / "chats").mkdir()
    write_lines(tmp_path / "chats/a.jsonl", *chats)
    section = '[[dataset]]\nname = "chats"\nkind = "chat"\npath = "chats"\ntokenizer = "model"\nlength = 96\n'
    assert build(write_job(tmp_path, section + "rows_per_shard = 4\n" + BY_SUBJECT)).exit_code == 0
    cache = Cache.open(str(tmp_path / "cache"))
    law, code = (stored(cache, f"chats-{subject}") for subject in SUBJECTS)
    assert ["or not 3<" in text for text in code] == [True, False, False]
    assert ["or not 0<" in text for text in law] == [True] + [False] * 8


def test_a_student_learns_from_both_domains_each_with_its_teacher(tmp_path: Path) -> None:
    write_table(tmp_path, ".jsonl", rows())
    teachers = [
        looking_teacher("lawyer", extra='datasets = ["texts-law"]'),
        looking_teacher("coder", extra='datasets = ["texts-code"]', scale=2.0),
    ]
    assert build(write_job(tmp_path, labelled(), *teachers)).exit_code == 0
    cache = Cache.open(str(tmp_path / "cache"))
    own = {"texts-law": "lawyer", "texts-code": "coder"}
    student = small_encoder(objective=[{"loss": "kd", "teacher": own, "temperature": 2.0}])
    data = {half: [f"{dataset}/{half}" for dataset in own] for half in ("train", "validation")}
    (record,) = train_students(request(cache, tmp_path / "runs", student, **data)).records
    assert (record.status, sorted(record.identity["teachers"])) == (
        "finished",
        ["texts-code/coder", "texts-law/lawyer"],
    )


def test_classes_are_those_of_all_domains(tmp_path: Path) -> None:
    table = [row for row in rows() if (row["subject"], row["label"]) != ("code", "plant")]
    write_table(tmp_path, ".jsonl", table)
    build(write_job(tmp_path, labelled()))
    catalogue = Cache.open(str(tmp_path / "cache")).catalogue()
    assert [spec.classes for spec in catalogue.datasets.values()] == [["fish", "fowl", "plant"]] * 2


def test_a_tokenizer_is_learned_once_from_all_domains(tmp_path: Path) -> None:
    write_table(tmp_path, ".jsonl", rows())
    section = (
        blocks()
        .replace('tokenizer = "tokenizer.json"', "train_tokenizer = { vocabulary = 300 }")
        .replace("= 16", "= 64")
    )
    build(write_job(tmp_path, section))
    law, code = ((tmp_path / f"cache/texts-{subject}/tokenizer.json").read_bytes() for subject in SUBJECTS)
    assert law == code


def test_a_domain_that_is_added_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    table = rows()
    for row in table[::10]:
        row["subject"] = "lore"
    write_table(tmp_path, ".jsonl", table)
    write_job(tmp_path, labelled(extra='where = { subject = "law" }', name="texts-law"))
    build(tmp_path / "job.toml")
    before = contents(tmp_path / "cache")
    report = build(write_job(tmp_path, labelled(extra='domain = "subject"\ndomains = ["lore", "law", "code"]\n')))
    after = contents(tmp_path / "cache")
    assert (report.exit_code, {shard: after[shard] for shard in before}) == (0, before)
    assert len(stored(Cache.open(str(tmp_path / "cache")), "texts-lore")) == 6


@pytest.mark.parametrize("section", [labelled, blocks])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_domain_that_is_not_named_is_refused_with_what_is_written(
    tmp_path: Path, section: object, suffix: str
) -> None:
    table = rows()
    table[33]["subject"] = "lore"
    write_table(tmp_path, suffix, table)
    with pytest.raises(BadRequest) as refused:
        build(write_job(tmp_path, section(suffix)))  # type: ignore[operator]
    assert refused.value.what == "a row is of no dataset that the job makes of its subject"
    assert (refused.value.found, refused.value.expected) == ("subject = 'lore'", "'law', 'code'")


def test_a_row_without_a_domain_is_refused(tmp_path: Path) -> None:
    table = rows()
    del table[5]["subject"]
    write_table(tmp_path, ".jsonl", table)
    with pytest.raises(BadRequest, match="nothing there"):
        build(write_job(tmp_path, labelled()))


def test_a_build_says_that_rows_are_of_other_datasets(tmp_path: Path) -> None:
    write_table(tmp_path, ".jsonl", rows())
    watcher = Silent()
    build(write_job(tmp_path, labelled()), watcher=watcher)
    assert sum("rows of another subject are not of this dataset" in note for note in watcher.notes) == 2


def test_another_where_is_another_dataset(tmp_path: Path) -> None:
    write_table(tmp_path, ".jsonl", rows())
    build(write_job(tmp_path, labelled(extra='where = { subject = "law" }')))
    with pytest.raises(StaleCache, match="where"):
        build(write_job(tmp_path, labelled(extra='where = { subject = "code" }')))


@pytest.mark.parametrize(
    ("section", "told"),
    [
        (labelled(extra='domain = "subject"'), "give both, or neither"),
        (labelled(extra='domain = "subject"\ndomains = ["law & order"]'), "'texts-law & order', which is no name"),
        (labelled(extra='domain = "topic"\ndomains = ["law"]'), "no column topic"),
        (labelled(extra='where = { topic = "law" }'), "no column topic"),
        (blocks(extra='where = { subject = "lore" }'), "is empty"),
        (
            blocks(extra=BY_SUBJECT).replace('column = "text"\n', "").replace("texts.jsonl", "texts.txt"),
            "are of tables",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused(tmp_path: Path, section: str, told: str) -> None:
    write_table(tmp_path, ".parquet", rows())
    write_table(tmp_path, ".jsonl", rows())
    (tmp_path / "texts.txt").write_text("running text")
    with pytest.raises(StillroomError) as refused:
        build(write_job(tmp_path, section.replace("texts.jsonl", "texts.parquet")))
    assert told in str(refused.value)
    assert isinstance(refused.value, BadRequest | MissingSource)


def test_domains_may_have_other_names_as_datasets(tmp_path: Path) -> None:
    section = labelled(extra='domain = "subject"\ndomains = { "law & order" = "law", "code" = "c" }')
    job = read_job(write_job(tmp_path, section), CacheJob)
    assert [source.name for source in job.sources] == ["texts-law", "texts-c"]
