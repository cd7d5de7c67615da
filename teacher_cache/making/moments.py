"""Batch norms of a smaller network take their means and variances again: theirs were of other activations.

Without it what was pruned answers at chance, whatever its weights know (EagleEye, Li et al. 2020, arXiv:2007.02491).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from teacher_cache.making.asking import batches

if TYPE_CHECKING:
    from student_train.students import Student
    from teacher_cache.making.subject import Subject


def retake(student: Student, subject: Subject) -> list[str]:
    """Set each batch norm's running mean and variance to those over the rows at hand; return in words what was done.

    All else of the student is as in evaluation, and a batch norm without running statistics has nothing to take.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    norms = [each for each in student.modules() if isinstance(each, _BatchNorm) and each.running_mean is not None]
    if not norms:
        return []
    rates = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    try:
        with torch.no_grad():
            for inputs_B, _ in batches(subject):
                if len(inputs_B) > 1:  # one row has no variance
                    student(inputs_B)
    finally:
        for norm, rate in zip(norms, rates, strict=True):
            norm.momentum = rate
            norm.eval()
    return [f"means and variances of {len(norms)} batch norms taken again over {len(subject.rows.shown_B)} rows"]
