from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.files.cache_job import CacheJob
from jobs.files.chain_job import ChainJob
from jobs.files.reading import read_job
from jobs.files.shrink_job import ShrinkJob
from jobs.files.student_job import StudentJob
from storage.errors import BadJob, BadRequest
from storage.options import Options
from student_train.stepping.parallel import Parallel

REPOSITORY = Path(__file__).parents[3]
CACHE = 'cache = "c"\n[[dataset]]\nname = "d"\nkind = "digits"\n'
JOBS = '[cluster]\nkind = "slurm"\nworkers = 2\n'
MORE = 'time = "1:00:00"\nmemory = "1 GiB"\n'
STUDENT = (
    'cache = "c"\nruns = "r"\ntrain = "d/train"\nvalidation = "d/validation"\n'
    '[[student]]\nname = "s"\narchitecture = "mlp"\nobjective = [{ loss = "labels" }]\nepochs = 1\nbatch_size = 8\n'
)


def mistakes(folder: Path, text: str, kind: type[CacheJob | StudentJob | ShrinkJob] = CacheJob) -> list[str]:
    path = folder / "job.toml"
    path.write_text(text)
    with pytest.raises(BadJob) as caught:
        read_job(path, kind)
    assert caught.value.found is not None
    return caught.value.found.split("\n")


@pytest.mark.parametrize("path", sorted((REPOSITORY / "jobs").glob("*.toml")), ids=lambda path: path.name)
def test_a_job_of_the_repository_is_valid(path: Path) -> None:
    kind = StudentJob if path.name.endswith((".students.toml", ".teacher.toml")) else CacheJob
    kind = {"shrink": ShrinkJob, "chain": ChainJob}.get(path.name.partition(".")[0], kind)
    assert read_job(path, kind)


def test_a_bench_says_which_of_its_keys_are_none_of_a_student(tmp_path: Path) -> None:
    text = (
        'job = "c.toml"\nteacher = "t"\nruns = "r"\ntrain = "d"\nvalidation = "d"\nways = ["prune-random"]\n'
        'flops = [0.5]\ndistilled = [{ loss = "kd", teacher = "t" }]\n[training]\n'
    )
    assert "epocs" in " ".join(mistakes(tmp_path, text + "epocs = 3\n", ShrinkJob))
    assert "seed" in " ".join(mistakes(tmp_path, text + "seed = 3\n", ShrinkJob))
    twice = text.replace('["prune-random"]', '["prune-random", "prune-random"]')
    assert "ways: the same twice" in " ".join(mistakes(tmp_path, twice, ShrinkJob))
    assert "nothing is compared" in " ".join(mistakes(tmp_path, text.replace('["prune-random"]', "[]"), ShrinkJob))
    (tmp_path / "job.toml").write_text(text + 'architecture = "net.py:build"\n')
    assert read_job(tmp_path / "job.toml", ShrinkJob).training["architecture"] == f"{tmp_path}/net.py:build"


def test_there_are_jobs_to_check() -> None:
    assert len(list((REPOSITORY / "jobs").glob("*.toml"))) >= 6


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = (
        'cahce = "c"\n[[dataset]]\nname = "a/b"\nkind = "digitz"\n[[dataset]]\nname = "d"\nkind = "digits"\n'
        'validation = 1.5\nseeed = 1\n[[teacher]]\nname = "t"\nbatch_size = "many"\nfactory = "m:f"\n'
        '[cluster]\nkind = "local"\nworkers = 0\n'
    )
    assert mistakes(tmp_path, text) == [
        "cache: missing",
        "dataset[0]: unknown kind 'digitz'; did you mean 'digits'? "
        "there are digits, image_folder, parquet_images, hf_folder, webdataset, arrays, factory, table, text, chat, "
        "tokens",
        "dataset[1].validation: expected less than 1 (found 1.5)",
        "dataset[1].seeed: unknown key; did you mean `seed`?",
        "teacher[0].batch_size: expected a whole number (found 'many')",
        "cluster.workers: expected at least 1 (found 0)",
        "cahce: unknown key; did you mean `cache`?",
    ]


@pytest.mark.parametrize(
    ("section", "mistake"),
    [
        ("[clutser]\n", "clutser: unknown key; did you mean `cluster`?"),
        (
            '[cluster]\nkind = "inline"\nshard_limit_s = 9\n',
            '`shard_limit_s` goes with workers that can be replaced: kind = "local", say',
        ),
        ('[cluster]\nkind = "slurmy"\n', "'inline', 'slurm', 'pbs', 'lsf', 'sge' or 'kubernetes' (found 'slurmy')"),
        ('[cluster]\nkind = "slurm"\n', "kind = 'slurm' needs `workers`, `time`, `memory` of its jobs"),
        ('[cluster]\nqueue = "gpu"\n', "`queue` goes with a batch scheduler"),
        ('[cluster]\nkind = "slurm"\ninside = true\ntime = "1:00:00"\n', "`time` is decided by the job that this"),
        ('[cluster]\nkind = "pbs"\ninside = true\n', '`inside` goes with kind = "slurm"'),
        (JOBS + 'time = "90"\n', "'90' is no time limit; write hours:minutes:seconds"),
        (JOBS + 'time = "1:00:00"\nmemory = "16"\n', "'16' is no amount of memory"),
        (JOBS + 'time = "1:00:00"\ngpus = 2\n', "cluster.gpus: expected at most 1 (found 2)"),
        (JOBS + MORE + 'directives = ["--time=5"]\n', "'--time=5' in `directives` is the time limit"),
        (JOBS + MORE + 'directives = ["#SBATCH --qos=x"]\n', "'#SBATCH --qos=x' in `directives` is no option"),
        (JOBS + MORE + 'directives = ["-C a\\nrm"]\n', "cluster.directives[0]: "),
        (JOBS.replace("slurm", "sge") + MORE + "gpus = 1\n", "`gpus` has a name of each site's own in SGE"),
        ('[cluster]\nkind = "address"\n', '`address` goes with kind = "address"'),
        ('[[teacher]]\nname = "t"\nfactory = "m:f"\nbatchsize = 3\n', "did you mean `batch_size`?"),
        ('[[teacher]]\nname = "t"\nfactory = "m:f"\nencoding = { dtyp = "fp16" }\n', "did you mean `dtype`?"),
        (
            '[[teacher]]\nname = "t"\nfactory = "m:f"\nfeatures.x = { layer = "a", pol = "mean" }\n',
            "did you mean `pool`?",
        ),
        ('[[teacher]]\nname = "t"\nfactory = "no colon"\n', 'write "package.module:function"'),
        (
            '[[teacher]]\nname = "t"\nfactory = "m:f"\ndatasets = ["x"]\n',
            "teacher t names unknown datasets x; there are d",
        ),
        ('[[teacher]]\nname = "ingest"\nfactory = "m:f"\n', "a cache keeps the names"),
        ('[[teacher]]\nname = "../t"\nfactory = "m:f"\n', "teacher[0].name: '../t' is no name"),
        ('[[teacher]]\nname = "t"\nfactory = "m:f"\nweights = 3\n', "teacher[0].weights: "),
        ('[[dataset]]\nname = "d"\nkind = "digits"\n', "two [[dataset]] are named d"),
        ('[[teacher]]\nname = "t"\nfactory = "m:f"\n' * 2, "two [[teacher]] are named t"),
        ('[[dataset]]\nname = "e"\n', "dataset[1]: "),
        (
            '[[teacher]]\nname = "t"\nfactory = "m:f"\nencoding = "fp16"\n',
            "teacher[0].encoding: expected a table, { key = value, … } (found 'fp16')",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place_and_what_would_be_valid(tmp_path: Path, section: str, mistake: str) -> None:
    found = mistakes(tmp_path, CACHE + section)
    assert len(found) == 1
    assert mistake in found[0]


@pytest.mark.parametrize(
    ("section", "mistake"),
    [
        ("[clutser]\n", "clutser: unknown key; did you mean `cluster`?"),
        ('[[cluster]]\nkind = "local"\n', "cluster: expected a table"),
        ('[cluster]\nkind = "slurmy"\n', "'inline', 'slurm', 'pbs', 'lsf', 'sge' or 'kubernetes' (found 'slurmy')"),
        ('[cluster]\nkind = "slurm"\n', "kind = 'slurm' needs `workers`, `time`, `memory` of its jobs"),
        ('[cluster]\nqueue = "gpu"\n', "`queue` goes with a batch scheduler"),
        ('[cluster]\nkind = "slurm"\ninside = true\ntime = "1:00:00"\n', "`time` is decided by the job that this"),
        ('[cluster]\nkind = "pbs"\ninside = true\n', '`inside` goes with kind = "slurm"'),
        (JOBS + 'time = "90"\n', "'90' is no time limit; write hours:minutes:seconds"),
        (JOBS + 'time = "1:00:00"\nmemory = "16"\n', "'16' is no amount of memory"),
        (JOBS + 'time = "1:00:00"\ngpus = 2\n', "cluster.gpus: expected at most 1 (found 2)"),
        (JOBS + MORE + 'directives = ["--time=5"]\n', "'--time=5' in `directives` is the time limit"),
        (JOBS + MORE + 'directives = ["#SBATCH --qos=x"]\n', "'#SBATCH --qos=x' in `directives` is no option"),
        (JOBS + MORE + 'directives = ["-C a\\nrm"]\n', "cluster.directives[0]: "),
        (JOBS.replace("slurm", "sge") + MORE + "gpus = 1\n", "`gpus` has a name of each site's own in SGE"),
        ("[cluster]\nkind = 3\n", "'sge' or 'kubernetes' (found 3)"),
        ('[cluster]\nkind = "local"\nworker = 2\n', "cluster.worker: unknown key; did you mean `workers`?"),
        ('[cluster]\nkind = "local"\nworkers = 0\n', "at least 1 (found 0)"),
        ('[cluster]\nkind = "local"\nworkers = -1\n', "at least 1 (found -1)"),
        (
            '[cluster]\nkind = "local"\nworkers = "all"\n',
            "cluster.workers: expected a whole number (found 'all')",
        ),
        ('[cluster]\nkind = "local"\nthreads = 1.5\n', "cluster.threads: expected a whole number"),
        ('[cluster]\nkind = "local"\naddress = "tcp://h:1"\n', '`address` goes with kind = "address"'),
        ('[cluster]\nkind = "address"\n', '`address` goes with kind = "address"'),
        ('[cluster]\nkind = "address"\naddress = "tcp://h:1"\nworkers = 2\n', '`workers` goes with kind = "local"'),
        ("[cluster]\nworkers = 2\n", '`workers` goes with kind = "local"'),
        (
            '[cluster]\nkind = "address"\naddress = 8786\n',
            'cluster.address: expected text, "…" (found 8786)',
        ),
        ('[cluster]\nkind = "local"\ndevices = [0, 1]\n', "cluster.devices: unknown key"),
    ],
)
def test_a_mistake_in_the_cluster_of_a_student_job_is_named(tmp_path: Path, section: str, mistake: str) -> None:
    found = mistakes(tmp_path, STUDENT + section, StudentJob)
    assert len(found) == 1
    assert mistake in found[0]


def test_students_are_trained_in_this_process_unless_the_job_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(STUDENT)
    assert read_job(tmp_path / "job.toml", StudentJob).cluster.kind == "inline"


def test_a_cluster_is_refused_under_torchrun(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(STUDENT + '[cluster]\nkind = "local"\n')
    job = read_job(tmp_path / "job.toml", StudentJob)
    with pytest.raises(BadRequest, match="exclude each other"):
        job.request("cpu", Parallel(rank=1, size=2))


def test_a_whole_number_is_no_text_and_a_text_no_number(tmp_path: Path) -> None:
    text = CACHE.replace('"c"', "3") + 'seed = "0"\nrows_per_shard = 2.5\n'
    found = mistakes(tmp_path, text)
    assert [line.split(":")[0] for line in found] == [
        "cache",
        "dataset[0].seed",
        "dataset[0].rows_per_shard",
    ]


def test_paths_are_relative_to_the_job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs").mkdir()
    path = tmp_path / "jobs" / "job.toml"
    path.write_text(
        'cache = "../caches/c"\n[[dataset]]\nname = "d"\nkind = "image_folder"\npath = "../data"\n'
        '[[teacher]]\nname = "t"\nfactory = "../code/teacher.py:build"\nweights = "w.safetensors"\n'
        '[[teacher]]\nname = "u"\nstudent = "../runs/u"\n'
    )
    monkeypatch.chdir("/")
    job = read_job(path, CacheJob)
    assert (job.cache, job.dataset[0].path) == (f"{tmp_path}/caches/c", tmp_path / "data")  # type: ignore[union-attr]
    assert (job.teacher[0].factory, job.teacher[0].weights) == (
        f"{tmp_path}/code/teacher.py:build",
        tmp_path / "jobs/w.safetensors",
    )
    assert job.teacher[1].student == tmp_path / "runs/u"


def test_an_object_store_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(CACHE.replace('"c"', '"s3://bucket/prefix/"'))
    assert read_job(tmp_path / "job.toml", CacheJob).cache == "s3://bucket/prefix"


def test_defaults_lie_beneath_every_student(tmp_path: Path) -> None:
    second = STUDENT[STUDENT.index("[[student]]") :].replace('"s"', '"t"').replace("epochs = 1", "epochs = 7")
    path = tmp_path / "job.toml"
    path.write_text(STUDENT.replace("epochs = 1\n", "") + second + "[defaults]\nepochs = 5\nseed = 3\n")
    students = read_job(path, StudentJob).student
    assert [(student.name, student.epochs, student.seed) for student in students] == [("s", 5, 3), ("t", 7, 3)]


@pytest.mark.parametrize(
    ("change", "mistake"),
    [
        ("[defaults]\nepohcs = 5\n", "defaults.epohcs: unknown key; did you mean `epochs`?"),
        ("defaults = 3\n", "defaults: "),
        (STUDENT[STUDENT.index("[[student]]") :], "two [[student]] are named s"),
    ],
)
def test_a_student_job_is_as_strict(tmp_path: Path, change: str, mistake: str) -> None:
    text = change + STUDENT if change.startswith("defaults") else STUDENT + change
    found = mistakes(tmp_path, text, StudentJob)
    assert len(found) == 1
    assert mistake in found[0]


def test_a_typo_in_an_objective_is_answered_with_the_nearest_key(tmp_path: Path) -> None:
    text = STUDENT.replace('{ loss = "labels" }', '{ loss = "kd", teacher = "t", temprature = 2.0 }')
    assert mistakes(tmp_path, text, StudentJob) == [
        "student[0].objective[0].temprature: unknown key; did you mean `temperature`?"
    ]


def test_a_key_that_a_table_lacks_is_named(tmp_path: Path) -> None:
    text = STUDENT.replace("objective", 'adapter = { kind = "lora" }\nobjective', 1)
    assert mistakes(tmp_path, text, StudentJob) == ["student[0].adapter.rank: missing"]


def test_a_path_of_another_architecture_is_told_with_where_it_may_be_from(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    path = 'path = "small"\n'
    (told,) = mistakes(tmp_path, STUDENT.replace("objective", path + "objective", 1), StudentJob)
    assert "is of architecture = \"transformers\" alone, and this one has 'mlp'" in told
    assert "[defaults]" in told
    (told,) = mistakes(tmp_path, STUDENT.replace('"mlp"', '"transformers"'), StudentJob)
    assert told == 'student[0]: architecture = "transformers" needs a `path`, a folder with its config'


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"cache = ", b"= 3", b'cache = "a"\ncache = "b"', b"{}"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(content)
    with pytest.raises(BadJob, match=r"is not TOML|cannot read"):
        read_job(path, CacheJob)


@pytest.mark.parametrize("kind", [CacheJob, StudentJob])
def test_an_empty_file_lacks_every_required_key(tmp_path: Path, kind: type[CacheJob | StudentJob]) -> None:
    assert all(line.endswith("missing") for line in mistakes(tmp_path, "", kind))


def test_a_student_job_given_to_the_cache_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(STUDENT)
    with pytest.raises(BadJob) as refusal:
        read_job(path, CacheJob)
    assert (refusal.value.found, refusal.value.do) == ("[[student]]", f"student train {path}")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(b"\xef\xbb\xbf" + b'cache = "c"\n[[dataset]]\nname = "d"\nkind = "digits"\n')
    assert [source.name for source in read_job(path, CacheJob).dataset] == ["d"]


@pytest.mark.parametrize(
    ("data", "what"),
    [('cache = "c"'.encode("utf-16"), "the byte-order mark of UTF-16"), (b"a = " + b"[" * 100_000, "is not TOML")],
    ids=["UTF-16", "brackets"],
)
def test_what_is_no_toml_is_told_without_a_traceback(tmp_path: Path, data: bytes, what: str) -> None:
    (tmp_path / "job.toml").write_bytes(data)
    with pytest.raises(BadJob, match=what):
        read_job(tmp_path / "job.toml", CacheJob)


def test_names_that_differ_in_case_alone_are_refused(tmp_path: Path) -> None:
    sections = "".join(f'[[dataset]]\nname = "{name}"\nkind = "digits"\n' for name in ("Photos", "photos"))
    (mistake,) = mistakes(tmp_path, f'cache = "c"\n{sections}')
    assert mistake.endswith("two [[dataset]] are named Photos and photos; a name is a folder, in any case of letters")


@pytest.mark.parametrize(
    ("line", "hint"),
    [("lenght = 9", "did you mean `length`?"), ("zzzzzz = 9", "there are ")],
)
def test_a_misspelt_key_of_a_text_with_labels_is_told_with_those_there_are(
    tmp_path: Path, line: str, hint: str
) -> None:
    text = f'cache = "c"\n[[dataset]]\nname = "d"\nkind = "text"\npath = "x.csv"\nlabel = "topic"\n{line}\n'
    (unknown,) = [mistake for mistake in mistakes(tmp_path, text) if "unknown key" in mistake]
    assert hint in unknown
    assert not unknown.endswith("there are ")


@pytest.mark.parametrize("kind", ["image_folder", "parquet_images", "arrays", "digits", "factory", "text", "tokens"])
def test_an_unknown_key_of_every_kind_is_told_with_those_there_are(tmp_path: Path, kind: str) -> None:
    text = f'cache = "c"\n[[dataset]]\nname = "d"\nkind = "{kind}"\nzzzzzz = 9\n'
    (unknown,) = [mistake for mistake in mistakes(tmp_path, text) if "unknown key" in mistake]
    assert {"kind", "name", "validation"} < set(unknown.partition("there are ")[2].split(", "))


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("size = 0", "dataset[0].size: expected at least 1 (found 0)"),
        ('size = "big"', "dataset[0].size: expected a whole number, or a list, [ … ] (found 'big')"),
        ("size = [32]", "dataset[0].size: expected at least 2 of them (found [32])"),
        ("size = [32, 0]", "dataset[0].size[1]: expected at least 1 (found 0)"),
        ("size = true", "dataset[0].size: expected a whole number, or a list, [ … ] (found true)"),
    ],
)
def test_a_value_of_several_types_has_one_mistake_of_the_type_that_was_meant(
    tmp_path: Path, line: str, mistake: str
) -> None:
    text = 'cache = "c"\n[[dataset]]\nname = "d"\nkind = "image_folder"\npath = "photos"\n'
    assert mistakes(tmp_path, text + line) == [mistake]


def test_a_name_that_is_none_is_answered_with_one(tmp_path: Path) -> None:
    (mistake,) = mistakes(tmp_path, CACHE.replace('"d"', '"my data"'))
    assert mistake.startswith("dataset[0].name: 'my data' is no name; ")
    assert mistake.endswith("write 'my-data'")


def test_an_abbreviation_is_answered_with_the_key(tmp_path: Path) -> None:
    assert mistakes(tmp_path, STUDENT + "lr = 0.1\nwd = 0.1\n", StudentJob) == [
        "student[0].lr: unknown key; did you mean `learning_rate`?",
        "student[0].wd: unknown key; did you mean `weight_decay`?",
    ]


def test_a_kind_that_is_missing_or_unknown_is_answered_with_all_there_are(tmp_path: Path) -> None:
    there = "digits, image_folder, parquet_images, hf_folder, webdataset, arrays, factory, table, text, chat, tokens"
    assert mistakes(tmp_path, CACHE.replace('kind = "digits"\n', "")) == [
        f"dataset[0]: `kind` is missing; there are {there}"
    ]
    assert mistakes(tmp_path, CACHE.replace('"digits"', '"image"')) == [
        f"dataset[0]: unknown kind 'image'; did you mean 'image_folder'? there are {there}"
    ]


def test_text_without_a_label_is_told_how_it_gets_classes(tmp_path: Path) -> None:
    text = 'cache = "c"\n[[dataset]]\nname = "d"\nkind = "text"\npath = "x.csv"\n'
    (mistake,) = mistakes(tmp_path, text)
    assert mistake.endswith("for classes, name the column of them: `label`")


def test_a_split_that_is_none_is_told_what_makes_one(tmp_path: Path) -> None:
    (mistake,) = mistakes(tmp_path, STUDENT.replace('"d/train"', '"photos/test"'), StudentJob)
    assert mistake.startswith("train: write ")
    assert mistake.endswith("samples to test on are a [[dataset]] of their own (found 'photos/test')")


@pytest.mark.parametrize("kind", [CacheJob, StudentJob])
def test_an_address_with_credentials_is_refused_and_they_are_not_told(tmp_path: Path, kind: type[Options]) -> None:
    secret = 'cache = "s3://key:hidden@bucket/prefix?X-Amz-Signature=hidden"'
    text = CACHE if kind is CacheJob else STUDENT
    found = mistakes(
        tmp_path, "\n".join(secret if line.startswith("cache") else line for line in text.splitlines()), kind
    )
    assert found == ["cache: s3://…@bucket/prefix?… holds credentials, which belong into the environment"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = " + "[" * 100_000, "is not TOML"),
        ("x = " + "{a=" * 100_000, "is not TOML"),
        (".".join(["a"] * 100_000) + " = 1", "is not a job"),
        ("[" + ".".join(["a"] * 100_000) + "]", "is not a job"),
        ("x = " + "[" * 200 + "]" * 200, "is not a job"),
        (".".join(["a"] * 900) + " = 1", "is not a job"),
    ],
)
def test_toml_that_nests_without_end_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "job.toml").write_text(text)
    with pytest.raises(BadJob) as caught:
        read_job(tmp_path / "job.toml", CacheJob)
    assert caught.value.what == f"{tmp_path}/job.toml {expected}"


@pytest.mark.parametrize(
    ("said", "mistake"),
    [
        ('keep = "scratch"', "give `keep`, a folder of this machine, and `keep_bytes`, what it may hold, together"),
        ("keep_bytes = 5", "give `keep`, a folder of this machine, and `keep_bytes`, what it may hold, together"),
        ('keep = "scratch"\nkeep_bytes = 0', "keep_bytes: expected at least 1 (found 0)"),
        (
            'keep = "c/kept"\nkeep_bytes = 5',
            "`keep` lies in the cache itself ({}/c/kept); name a folder on a disk of this",
        ),
    ],
)
def test_a_folder_to_keep_shards_in_has_a_bound_and_is_not_the_cache(tmp_path: Path, said: str, mistake: str) -> None:
    (found,) = mistakes(tmp_path, f"{said}\n{STUDENT}", StudentJob)
    assert mistake.format(tmp_path) in found


@pytest.mark.parametrize("what", ["/dev/zero", "pipe", "holes"])
def test_a_job_that_is_no_file_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "job.toml"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "holes":
        path.touch()
        os.truncate(path, 2**42)
    else:
        path.symlink_to(what)
    with pytest.raises(BadJob, match="cannot read the job file"):
        read_job(path, CacheJob)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("5", 'train: expected text, "…", or a list'),
        ("[]", "train: name the rows of one dataset at least"),
        (
            '["a/train", "a/validation"]',
            'train: a dataset is named once, "<dataset>" for both of its halves (twice: a)',
        ),
        ('["a/train", "b/test"]', "train: write "),
    ],
)
def test_rows_of_several_datasets_are_checked_each(tmp_path: Path, rows: str, told: str) -> None:
    (mistake,) = mistakes(tmp_path, STUDENT.replace('"d/train"', rows), StudentJob)
    assert mistake.startswith(told)


REPOSITORY_JOBS = {
    "cache build": (CacheJob, "digits.cache.toml"),
    "student train": (StudentJob, "digits.students.toml"),
    "student chain": (ChainJob, "chain.digits.toml"),
    "student bench": (ShrinkJob, "shrink.cifar10.toml"),
}


@pytest.mark.parametrize("command", REPOSITORY_JOBS)
def test_a_job_of_another_command_is_told_as_what_it_is(command: str) -> None:
    kind, own = REPOSITORY_JOBS[command]
    assert read_job(REPOSITORY / "jobs" / own, kind)
    for other, (_, name) in REPOSITORY_JOBS.items():
        if other != command:
            path = REPOSITORY / "jobs" / name
            with pytest.raises(BadJob) as refused:
                read_job(path, kind)
            assert (refused.value.what, refused.value.do) == (f"{path} is a job of {other}", f"{other} {path}")
