"""The page on publishing does what it says, over a real web server; students are those of the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import Program
from tests.jobs.conftest import kitchen  # noqa: F401 - a fixture
from tests.pages.reading import run_page
from tests.web import serve

SERVER = "http://localhost:8000"


def test_the_page_on_publishing_does_what_it_says(
    kitchen: Path,  # noqa: F811
    program: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(kitchen / "cache", "caches/digits")
    Path("notice.txt").write_text("CC BY 4.0, by us.\n")
    with serve(tmp_path / "public") as (address, requests):

        def run(command: list[str], folder: Path) -> str:
            name, *arguments = [Path(command[0]).name, *command[1:]]
            ended = program(name, *(argument.replace(SERVER, address) for argument in arguments))
            assert ended.code == 0, ended
            return ended.out + ended.err

        printed = run_page("publishing.md", tmp_path, run, {SERVER: address, '"cnn"': '"toy"'})
        assert (printed.count("CC BY 4.0, by us."), {line.split()[0] for line in requests}) == (2, {"GET"})
    theirs = Path("theirs.students.toml").read_text()
    Path("ours.students.toml").write_text(
        theirs.replace(f"{address}/digits", "caches/digits").replace("theirs", "ours")
    )
    assert program("student", "train", "ours.students.toml").code == 0
    ours, others = (Path(f"runs/{name}/small/student.safetensors").read_bytes() for name in ("ours", "theirs"))
    assert (ours == others, len(ours) > 1000) == (True, True)


def test_a_public_bucket_is_read_without_credentials(
    kitchen: Path,  # noqa: F811
    program: Program,
    bucket: str,
    s3_server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=s3_server)
    client.create_bucket(Bucket="public")
    actions, resources = ["s3:GetObject", "s3:ListBucket"], ["arn:aws:s3:::public", "arn:aws:s3:::public/*"]
    statement = {"Effect": "Allow", "Principal": "*", "Action": actions, "Resource": resources}
    client.put_bucket_policy(Bucket="public", Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    assert program("cache", "copy", kitchen / "cache", "s3://public/digits").code == 0
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert program("cache", "verify", "s3://public/digits").code == 0
