"""tokenizer.json: learned the same every time, told apart by what it does, refused when it is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from storage.errors import BadRequest, MissingSource
from storage.language.tokenizer import difference, encoder, parse_tokenizer, read_tokenizer, spelling, train_tokenizer

TEXTS = ["the cat sat on the mat", "the dog sat on the log: naïve, 猫"] * 20
LEARNED = train_tokenizer(TEXTS, 280, "<|endoftext|>")


def changed(**parts: Any) -> bytes:
    return json.dumps(json.loads(LEARNED) | parts).encode()


def test_learning_again_in_another_process_gives_the_same_bytes() -> None:
    code = (
        "import sys; from storage.language.tokenizer import train_tokenizer\n"
        f"sys.stdout.buffer.write(train_tokenizer({TEXTS!r}, 280, '<|endoftext|>'))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == LEARNED


def test_a_learned_tokenizer_spells_any_text_and_ends_it_with_token_0() -> None:
    from tokenizers import Tokenizer

    text = "unseen: ξ\0\r\n\t🦆 "
    (ids,) = encoder(LEARNED)([text])
    assert Tokenizer.from_str(LEARNED.decode()).decode(ids.tolist()) == text
    assert parse_tokenizer(LEARNED, "x").special("<|endoftext|>") == 0


def test_a_special_token_spelled_in_a_document_is_text() -> None:
    (ids,) = encoder(LEARNED)(["a<|endoftext|>b"])
    assert 0 not in ids.tolist()


def test_a_special_token_in_a_document_is_parsed_where_it_is_asked_for() -> None:
    encode = encoder(LEARNED, parse_special=True)
    a, b = encode(["a", "b"])
    assert encode(["a<|endoftext|>b"])[0].tolist() == [*a, 0, *b]


def test_a_template_of_special_tokens_and_trimmed_offsets_are_not_followed() -> None:
    trims = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    ids, offsets = spelling(changed(post_processor=trims))(["the cat"])[0]
    assert ids.tolist() == encoder(LEARNED)(["the cat"])[0].tolist()
    # a space is a part of the token that it begins
    assert ["the cat"[start:stop] for start, stop in offsets] == ["the", " cat"]


def test_truncation_and_padding_of_a_file_are_not_followed() -> None:
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 99},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    own, other = (
        encoder(data)(["the cat sat on the mat, twice"])[0].tolist()
        for data in (LEARNED, changed(truncation=truncation, padding=padding))
    )
    assert own == other


def test_the_fingerprint_is_blind_to_what_does_not_decide_ids() -> None:
    merges = [" ".join(merge) for merge in json.loads(LEARNED)["model"]["merges"]]
    model = json.loads(LEARNED)["model"] | {"merges": merges}
    same = [
        changed(decoder=None, truncation={"max_length": 3}),
        changed(model=model),
        json.dumps(json.loads(LEARNED)).encode(),
    ]
    assert {parse_tokenizer(data, "x").fingerprint for data in same} == {parse_tokenizer(LEARNED, "x").fingerprint}


@pytest.mark.parametrize("part", ["added_tokens", "normalizer", "pre_tokenizer", "model"])
def test_the_fingerprint_sees_what_decides_ids(part: str) -> None:
    other = changed(
        **{
            part: json.loads(train_tokenizer(["other"], 258, "<e>"))[part]
            if part in ("added_tokens", "model")
            else {"type": "Lowercase"}
        }
    )
    assert parse_tokenizer(other, "x").fingerprint != parse_tokenizer(LEARNED, "x").fingerprint


def test_gaps_between_ids_count_in_the_vocabulary() -> None:
    added = [{"id": 999, "content": "<x>", "special": True}]
    assert parse_tokenizer(changed(added_tokens=added), "x").vocabulary == 1000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"model": {"vocab": {}}}',
        b'{"model": {"vocab": [1]}}',
        b'{"model": {"vocab": {"a": -1}}}',
        b'{"model": {"vocab": {"a": 4294967295}}}',
        b'{"model": {"vocab": {"a": "0"}}}',
        b'{"model": {"vocab": {"a": 0}}, "added_tokens": [3]}',
    ],
)
def test_what_is_no_tokenizer_is_refused(data: bytes) -> None:
    with pytest.raises(MissingSource, match=r"given is not a tokenizer\.json"):
        parse_tokenizer(data, "given")


def test_a_file_that_the_library_refuses_is_refused() -> None:
    with pytest.raises(MissingSource, match="cannot be used"):
        encoder(b'{"model": {"vocab": {"a": 0}}}')


def test_an_unknown_end_of_text_names_those_that_look_like_one() -> None:
    with pytest.raises(BadRequest) as error:
        parse_tokenizer(LEARNED, "x").special("</s>")
    assert "<|endoftext|>" in str(error.value.found)


def test_two_tokenizers_part_at_the_first_id_of_another_token() -> None:
    learned, other = parse_tokenizer(LEARNED, "x"), parse_tokenizer(train_tokenizer(["zz zzz"], 280, "<end>"), "y")
    assert difference(learned, other) == "difference at id 0: '<|endoftext|>' instead of '<end>'"
    longer = parse_tokenizer(train_tokenizer(TEXTS, 281, "<|endoftext|>"), "longer")
    assert difference(learned, longer).startswith("difference at id 280: no token instead of ")


def test_two_tokenizers_of_the_same_tokens_part_by_a_rule() -> None:
    merges = [" ".join(pair) for pair in json.loads(LEARNED)["model"]["merges"]]
    respelled = json.loads(LEARNED)["model"] | {"merges": merges}
    other = parse_tokenizer(changed(normalizer={"type": "NFC"}, model=respelled), "y")
    assert difference(parse_tokenizer(LEARNED, "x"), other) == "difference: the same tokens, by another normalizer"


def test_the_tokenizer_of_a_models_folder_is_read(tmp_path: Path) -> None:
    with pytest.raises(MissingSource, match=r"holds no tokenizer\.json"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(LEARNED)
    assert read_tokenizer(tmp_path).data == LEARNED
