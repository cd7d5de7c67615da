from __future__ import annotations

import time

import pytest
import torch

from student_train.running.measuring.latency import measure_latency
from student_train.students import Blueprint, Student, build_student

MLP = Blueprint(architecture="mlp", num_classes=10, input_shape=(1, 8, 8), mean=(0.5,), std=(0.5,))
GPT = Blueprint(
    architecture="gpt",
    options={"depth": 1, "width": 16, "heads": 2},
    num_classes=500,
    input_shape=(16,),
    mean=None,
    std=None,
)


@pytest.mark.parametrize("spec", [MLP, GPT], ids=["rows", "tokens"])
def test_a_batch_is_answered_faster_than_its_rows_one_by_one(spec: Blueprint) -> None:
    found = measure_latency(build_student(spec), spec.input_shape)
    assert found.latency_ms > 0
    assert found.inference_rows_per_s > 1000 / found.latency_ms


def test_a_small_student_is_measured_in_half_a_second() -> None:
    student = build_student(MLP)
    started = time.process_time()
    measure_latency(student, MLP.input_shape)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("training", [True, False])
def test_measuring_changes_nothing(training: bool) -> None:
    student = build_student(MLP).train(training)
    weights, random = [p.clone() for p in student.parameters()], torch.random.get_rng_state()
    measure_latency(student, MLP.input_shape)
    assert student.training == training
    assert all(torch.equal(a, b) for a, b in zip(weights, student.parameters(), strict=True))
    assert torch.equal(torch.random.get_rng_state(), random)


def test_batches_are_no_larger_than_they_may_be() -> None:
    student, seen = build_student(MLP), set()
    student.register_forward_pre_hook(lambda module, inputs: seen.add(len(inputs[0])))
    measure_latency(student, MLP.input_shape, batch_size=24)
    assert {1} <= seen <= {1, 2, 4, 8, 16}  # fewer where the machine is busy


def test_a_slow_student_is_asked_twice_and_in_small_batches() -> None:
    student, passes = build_student(MLP), []
    student.register_forward_pre_hook(lambda module, inputs: time.sleep(0.2))
    student.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    measure_latency(student, MLP.input_shape)
    assert passes == [1, 1]


def test_of_tokens_only_the_next_ones_scores_are_made() -> None:
    student, sizes = build_student(GPT), set()
    assert isinstance(student, Student)
    student.network.head.register_forward_hook(lambda module, inputs, output: sizes.add(output.numel() // 500))
    measure_latency(student, GPT.input_shape, batch_size=4)
    assert {1} <= sizes <= {1, 2, 4}
