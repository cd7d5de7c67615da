"""An audit of a teacher that masks classes tolerates no more than one of a teacher that does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from teacher_cache.teachers.loading import cached_teacher
from tests.teacher_cache.auditing.test_audit import ENCODINGS, SWAYED, audit
from tests.teacher_cache.toys import build, write_digits, write_job


@pytest.mark.parametrize("mask", ["-12345.0", "-1e9", "torch.finfo(torch.float32).min", "-torch.inf"])
@pytest.mark.parametrize("encoding", ["fp32", "bf16", "int8", "sparse", "draws"])
@pytest.mark.parametrize("autocast", ["fp32", "bf16"])
def test_a_swayed_teacher_is_seen_beside_masked_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str, encoding: str, autocast: str
) -> None:
    cached_teacher.cache_clear()
    (tmp_path / "swayed.py").write_text(
        SWAYED.replace("        return logits", f"        logits[:, 7] = {mask}\n        return logits")
    )
    section = f'[[teacher]]\nname = "swayed"\nfactory = "swayed.py:build"\nencoding = {ENCODINGS[encoding]}\n'
    job = write_job(tmp_path, write_digits(tmp_path, 60), f'{section}autocast = "{autocast}"\n')
    assert build(job).exit_code == 0
    (found,) = audit(job).audited
    assert found.off == ()
    cached_teacher.cache_clear()
    monkeypatch.setenv("SWAY", "5")
    (found,) = audit(job).audited
    assert found.off
    cached_teacher.cache_clear()
