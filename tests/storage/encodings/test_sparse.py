"""The largest classes, draws from the rest, and what is left: encoded, stored, decoded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from storage.digests import sample_keys
from storage.encodings import AnyEncoding, Capability, DenseEncoding, Encoding, SparseEncoding
from storage.encodings.draws import bundle_sums, counted, draw, position_keys, uniforms
from storage.encodings.largest import bundle_maxima, largest
from storage.errors import BadRequest
from storage.format.arrays import pack, unpack
from storage.targets.soft import NEVER, SparseTargets

LOGITS = npst.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(3, 40)), elements=st.floats(-60, 60, width=32)
)
VALUES = pytest.mark.parametrize("values", ["fp16", "8bit"])


def keys_of(rows: int) -> Tensor:
    return torch.from_numpy(sample_keys(f"row-{row}" for row in range(rows)))


def encode(encoding: SparseEncoding, logits_BV: Tensor, classes: int | None = None) -> dict[str, Tensor]:
    none_B = torch.full((len(logits_BV),), -1)
    classes = logits_BV.shape[1] if classes is None else classes
    return encoding.encode(logits_BV, num_classes=classes, labels_B=none_B, keys_B=keys_of(len(logits_BV)))


def decoded(encoding: SparseEncoding, logits_BV: Tensor, classes: int | None = None) -> SparseTargets:
    classes = logits_BV.shape[1] if classes is None else classes
    return encoding.decode(encode(encoding, logits_BV, classes), classes)


def drawn(weights_BC: Tensor, uniforms_BN: Tensor) -> Tensor:
    sums_BE = bundle_sums(weights_BC, uniforms_BN.shape[1])
    return draw(sums_BE, lambda ids_BJ: weights_BC.gather(1, ids_BJ), uniforms_BN, weights_BC.shape[1])


def zipf(rows: int, classes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return -1.1 * torch.arange(1, classes + 1).log() + 1.5 * torch.randn(rows, classes, generator=generator)


# --- the largest


@given(LOGITS, st.integers(1, 3))
def test_the_kept_classes_are_the_largest(logits: np.ndarray, k: int) -> None:
    found = decoded(SparseEncoding(k=k), torch.from_numpy(logits))
    kept = np.take_along_axis(logits, found.ids_BK.numpy(), axis=1)
    # Differences to the largest are compared, so values that differ by less than its rounding may stand for each other.
    np.testing.assert_allclose(np.sort(kept, axis=1), np.sort(logits, axis=1)[:, -k:], atol=1e-5)
    assert (found.ids_BK.diff(dim=1) > 0).all()


@pytest.mark.parametrize("classes", [1, 255, 256, 1000, 4097, 128_256])
def test_the_largest_are_found_without_sorting_a_vocabulary(classes: int) -> None:
    values_BC, k = torch.randn(3, classes, generator=torch.Generator().manual_seed(0)), min(classes, 64)
    assert torch.equal(
        largest(values_BC, k, bundle_maxima(values_BC, k)).sort(1).values, values_BC.topk(k).indices.sort(1).values
    )


@VALUES
def test_what_is_kept_is_the_log_probability(values: Any) -> None:
    logits_BC = zipf(50, 1000)
    found = decoded(SparseEncoding(k=32, values=values), logits_BC)
    expected_BK = logits_BC.double().log_softmax(1).gather(1, found.ids_BK)
    step = 0.5 * (expected_BK.amax() - expected_BK.amin()) / 255 if values == "8bit" else 2**-10 * 10
    assert (found.log_p_BK - expected_BK).abs().max() < 1.5 * step


@VALUES
@given(LOGITS, st.integers(1, 3), st.sampled_from([0.5, 1.0, 3.0]))
def test_what_is_decoded_is_a_distribution_at_every_declared_temperature(
    values: Any, logits: np.ndarray, k: int, temperature: float
) -> None:
    encoding = SparseEncoding(k=k, values=values, temperatures=[0.5, 3])
    found = decoded(encoding, torch.from_numpy(logits))
    mass_B = found.kept_log_p(temperature).exp().sum(1) + found.log_rest(temperature).exp()
    assert (mass_B - 1).abs().max() < 1e-5
    assert (found.log_rest(temperature) < 0).all()


@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0])
def test_the_rest_is_exact_at_every_declared_temperature(temperature: float) -> None:
    """Beyond float32's 1 − Σ: of a teacher that is all but certain, the rest is 10⁻⁹ and less."""
    logits_BC = zipf(20, 500)
    logits_BC[:10, 3] += 25
    found = decoded(SparseEncoding(k=8, values="8bit", temperatures=[0.7, 4]), logits_BC)
    p_BC = (logits_BC.double() / temperature).softmax(1)
    expected_B = p_BC.scatter(1, found.ids_BK, 0.0).sum(1).log()
    torch.testing.assert_close(found.log_rest(temperature).double(), expected_B, rtol=2**-10, atol=1e-6)


@VALUES
def test_other_temperatures_follow_from_temperature_1(values: Any) -> None:
    logits_BC = zipf(50, 1000)
    found = decoded(SparseEncoding(k=32, values=values, temperatures=[4]), logits_BC)
    expected_BK = (logits_BC.double() / 4).log_softmax(1).gather(1, found.ids_BK)
    assert (found.kept_log_p(4.0) - expected_BK).abs().max() < 0.01


def test_standardised_logits_follow_from_temperature_1() -> None:
    logits_BC = zipf(50, 1000)
    found = decoded(SparseEncoding(k=32, standardised_temperatures=[2]), logits_BC)
    exact_BC = logits_BC.double()
    z_BC = (exact_BC - exact_BC.mean(1, keepdim=True)) / exact_BC.std(1, unbiased=False, keepdim=True)
    log_p_BK, log_rest_B = found.standardised(2.0)
    expected_BC = (z_BC / 2).log_softmax(1)
    assert (log_p_BK - expected_BC.gather(1, found.ids_BK)).abs().max() < 0.01
    torch.testing.assert_close(
        log_rest_B.exp().double(), expected_BC.exp().scatter(1, found.ids_BK, 0.0).sum(1), rtol=1e-3, atol=0
    )


def test_temperature_1_needs_no_statistics() -> None:
    logits_BC = zipf(5, 100)
    found = decoded(SparseEncoding(k=4, statistics=False), logits_BC)
    assert found.statistics is None
    pair = found.pair(logits_BC, 1.0)
    assert (pair.log_p - pair.log_q).abs().max() < 0.01


@VALUES
@pytest.mark.parametrize("classes", [200, 3000, 70_000])
def test_what_was_on_a_disk_decodes_as_before(values: Any, classes: int) -> None:
    encoding, logits_BC = SparseEncoding(k=6, n=9, p=0.9, values=values, temperatures=[2]), zipf(8, classes)
    arrays = encode(encoding, logits_BC)
    packed = pack({name: stored.numpy() for name, stored in arrays.items()})
    read = encoding.decode({n: torch.from_numpy(array) for n, array in unpack(packed, arrays).items()}, classes)
    fresh = encoding.decode(arrays, classes)
    for field in ("ids_BK", "log_p_BK", "draws_BN", "counts_BN", "log_rest_BT"):
        assert torch.equal(getattr(read, field), getattr(fresh, field))


def test_all_classes_can_be_kept() -> None:
    logits_BC = zipf(5, 10)
    pair = decoded(SparseEncoding(k=10), logits_BC).pair(logits_BC, 1.0)
    assert (pair.log_p[:, :10].exp() - logits_BC.softmax(1)).abs().max() < 1e-3
    assert pair.log_p[:, 10].exp().max() < 1e-7


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_eight_bits_cost_less_than_a_thousandth_of_a_nat(temperature: float) -> None:
    logits_BC = zipf(200, 32_000)
    coarse = decoded(SparseEncoding(k=64, values="8bit", temperatures=[2]), logits_BC)
    log_p = (logits_BC.double() / temperature).log_softmax(1)
    kept = log_p.gather(1, coarse.ids_BK)
    rest = log_p.exp().scatter(1, coarse.ids_BK, 0.0).sum(1)
    kl = (kept.exp() * (kept - coarse.kept_log_p(temperature))).sum(1)
    kl += rest * (rest.log() - coarse.log_rest(temperature))
    assert -1e-9 <= kl.mean() < 3e-4


@given(LOGITS, st.floats(0.05, 0.95))
def test_a_nucleus_is_the_fewest_classes_of_its_mass(logits: np.ndarray, p: float) -> None:
    logits_BC = torch.from_numpy(logits)
    k = logits.shape[1]
    found = decoded(SparseEncoding(k=k, p=p), logits_BC)
    sorted_BC = logits_BC.double().softmax(1).sort(1, descending=True).values
    before_BC = sorted_BC.cumsum(1) - sorted_BC
    unsure = ((before_BC - p).abs() < 1e-6).any(1)  # of one rounding either way
    num_B = (found.log_p_BK > NEVER).sum(1)
    assert torch.equal(num_B[~unsure], (before_BC < p).sum(1)[~unsure])
    mass_B = found.log_p_BK.exp().sum(1) + found.log_rest(1.0).exp()
    assert (mass_B - 1).abs().max() < 1e-5


def test_what_a_nucleus_cuts_is_part_of_the_rest() -> None:
    logits_BC = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    found = decoded(SparseEncoding(k=3, p=0.7, temperatures=[2]), logits_BC)
    assert found.ids_BK.tolist() == [[0, 1, 1]]
    assert math.isclose(found.log_rest(1.0).exp().item(), 0.2, rel_tol=2e-3)
    roots = [p**0.5 for p in (0.5, 0.3, 0.15, 0.05)]
    assert math.isclose(found.log_rest(2.0).exp().item(), sum(roots[2:]) / sum(roots), rel_tol=2e-3)
    assert math.isclose(found.kept_log_p(2.0)[0, 0].exp().item(), roots[0] / sum(roots), rel_tol=2e-3)


@pytest.mark.parametrize(
    "encoding",
    [
        DenseEncoding(dtype="int8"),
        SparseEncoding(k=3, temperatures=[1.0, 4.0]),
        SparseEncoding(k=9),
        SparseEncoding(n=4),
        SparseEncoding(k=3, n=4, standardised_temperatures=[2.0]),
    ],
    ids=str,
)
@pytest.mark.parametrize("padding", [-torch.inf, 5.0])
def test_padding_of_a_vocabulary_changes_nothing_that_is_stored(encoding: Encoding, padding: float) -> None:
    logits_BC, labels_B = zipf(6, 9), torch.arange(6)
    padded_BV = torch.cat([logits_BC, torch.full((6, 3), padding)], 1)
    without, padded = (
        encoding.encode(logits, num_classes=9, labels_B=labels_B, keys_B=labels_B) for logits in (logits_BC, padded_BV)
    )
    assert {name: values.tolist() for name, values in padded.items()} == {n: v.tolist() for n, v in without.items()}


# --- ids


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(256, "uint8"), (257, "uint16"), (65_536, "uint16"), (65_537, "int32"), (262_144, "int32")],
)
def test_ids_have_the_smallest_type_that_holds_the_classes(classes: int, dtype: str) -> None:
    logits_BC = torch.zeros(2, classes)
    logits_BC[0, [0, classes - 1]] = 9.0
    logits_BC[1, [classes - 2, classes - 1]] = 9.0
    encoding = SparseEncoding(k=2, n=2)
    assert [encode(encoding, logits_BC)[name].numpy().dtype for name in ("ids", "draws")] == [np.dtype(dtype)] * 2
    assert decoded(encoding, logits_BC).ids_BK.tolist() == [[0, classes - 1], [classes - 2, classes - 1]]


def test_the_last_of_262144_classes_can_be_drawn() -> None:
    logits_BC = torch.full((1, 262_144), -50.0)
    logits_BC[0, -1] = 0.0
    found = decoded(SparseEncoding(n=3), logits_BC)
    assert found.draws_BN is not None
    assert found.draws_BN.tolist() == [[262_143] * 3]


def test_sixteen_bits_that_travelled_as_signed_ones_are_the_same_ids() -> None:
    logits_BC = zipf(3, 60_000).flip(1)  # large ids, large first differences
    encoding = SparseEncoding(k=4, n=5)
    arrays = encode(encoding, logits_BC)
    signed = {name: a.view(torch.int16) if a.dtype == torch.uint16 else a for name, a in arrays.items()}
    assert torch.equal(encoding.decode(signed, 60_000).ids_BK, encoding.decode(arrays, 60_000).ids_BK)
    assert int(encoding.decode(signed, 60_000).ids_BK.max()) > 2**15


# --- draws


def test_draws_are_a_function_of_the_row_alone() -> None:
    logits_BC, encoding = zipf(40, 700), SparseEncoding(k=4, n=30, seed=5)
    whole = encode(encoding, logits_BC)
    none_B, order_B = torch.full((40,), -1), torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for rows_B in (*order_B.split(7), order_B):
        part = encoding.encode(logits_BC[rows_B], num_classes=700, labels_B=none_B[rows_B], keys_B=keys_of(40)[rows_B])
        assert torch.equal(part["draws"], whole["draws"][rows_B])
        assert torch.equal(part["counts"], whole["counts"][rows_B])


def test_another_seed_draws_others() -> None:
    logits_BC = torch.zeros(1, 1000)
    one, two = (encode(SparseEncoding(n=20, seed=seed), logits_BC)["draws"] for seed in (0, 1))
    assert not torch.equal(one, two)


def test_random_numbers_are_the_same_on_every_machine() -> None:
    """SplitMix64 in Python's own integers."""

    def mixed(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    golden, seed, key = 0x9E3779B97F4A7C15, 7, -3
    row = mixed(key % 2**64 ^ mixed((seed + golden) % 2**64))
    expected = [(mixed((row + number * golden) % 2**64) >> 11) / 2**53 for number in (1, 2, 3)]
    assert uniforms(seed, torch.tensor([key]), 3).tolist() == [expected]


def test_positions_of_a_row_have_keys_of_their_own() -> None:
    keys_BL = position_keys(keys_of(50), 200)
    assert len(keys_BL.unique()) == 50 * 200


@pytest.mark.parametrize("classes", [7, 100, 3000])
def test_draws_are_unbiased(classes: int) -> None:
    """Pearson's χ² over classes with at least 20 expected draws, its mean their number and its variance twice that."""
    logits_1C = zipf(1, classes)
    p_C = logits_1C.double().softmax(1)[0]
    ids_BN = drawn(logits_1C.exp().expand(2000, -1), uniforms(3, keys_of(2000), 50))
    counts_C = ids_BN.flatten().bincount(minlength=classes).double()
    often_C = p_C * ids_BN.numel() >= 20
    expected = torch.cat([p_C[often_C], p_C[~often_C].sum()[None]]) * ids_BN.numel()
    found = torch.cat([counts_C[often_C], counts_C[~often_C].sum()[None]])
    cells = expected >= 1
    chi2, df = ((found - expected).square() / expected)[cells].sum().item(), int(cells.sum()) - 1
    assert abs(chi2 - df) < 4 * math.sqrt(2 * df)


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("classes", [3, 1000])
def test_what_has_no_weight_is_never_drawn(classes: int, number: float) -> None:
    weights_1C = torch.zeros(1, classes)
    weights_1C[0, classes // 2] = 0.1
    assert drawn(weights_1C, torch.tensor([[number, number]], dtype=torch.float64)).tolist() == [[classes // 2] * 2]


def test_draws_beside_kept_classes_are_of_the_rest_only() -> None:
    logits_BC = zipf(2000, 60, seed=1)[:1].expand(2000, -1)
    found = decoded(SparseEncoding(k=5, n=30), logits_BC)
    assert found.draws_BN is not None
    assert found.counts_BN is not None
    estimate_C = torch.zeros(60).scatter_add_(0, found.draws_BN.flatten(), found.counts_BN.flatten()) / (2000 * 30)
    rest_C = logits_BC[0].softmax(0).scatter(0, found.ids_BK[0], 0.0)
    rest_C /= rest_C.sum()
    assert estimate_C[found.ids_BK[0]].sum() == 0
    error_C = (rest_C * (1 - rest_C) / (2000 * 30)).sqrt()
    assert ((estimate_C - rest_C).abs() <= 4.5 * error_C).all()


@given(npst.arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.integers(0, 8)))
def test_draws_are_counted(ids: np.ndarray) -> None:
    distinct_BN, counts_BN = (tensor.tolist() for tensor in counted(torch.from_numpy(ids)))
    for row, distinct, counts in zip(ids.tolist(), distinct_BN, counts_BN, strict=True):
        kept = sorted(set(row))
        padding = [kept[-1]] * (len(row) - len(kept))
        assert distinct == kept + padding
        assert counts == [row.count(each) for each in kept] + [0] * len(padding)


@pytest.mark.parametrize("n", [200, 255, 256, 300])
def test_counts_of_many_draws_do_not_wrap(n: int) -> None:
    logits_BC = torch.full((1, 400), -80.0)
    logits_BC[0, 11] = 0.0
    found = decoded(SparseEncoding(n=n), logits_BC)
    assert found.counts_BN is not None
    assert found.counts_BN[0, 0] == n


# --- what is promised


@VALUES
@pytest.mark.parametrize("classes", [200, 3000, 70_000])
@pytest.mark.parametrize(("k", "n"), [(5, 0), (0, 7), (5, 7), (0, 199)])
def test_the_promised_bytes_are_those_of_the_arrays(values: Any, classes: int, k: int, n: int) -> None:
    for statistics in (True, False):
        encoding = SparseEncoding(
            k=k, n=n, values=values, statistics=statistics, temperatures=[2], standardised_temperatures=[1, 2]
        )
        stored = encode(encoding, zipf(3, classes))
        assert sum(array.numpy().nbytes for array in stored.values()) == 3 * encoding.bytes_per_row(classes)


@pytest.mark.parametrize(
    ("options", "need", "remedy"),
    [
        ({"k": 4}, Capability("logits"), 'encoding = { kind = "dense", dtype = "fp16" }'),
        ({"k": 4}, Capability("bucket", 1.0), None),
        ({"k": 4}, Capability("bucket", 4.0), "encoding.temperatures = [1.0, 4.0]"),
        ({"k": 4, "temperatures": [2.0]}, Capability("bucket", 4.0), "encoding.temperatures = [1.0, 2.0, 4.0]"),
        ({"n": 4}, Capability("bucket", 1.0), 'encoding = { kind = "sparse", k = 64 }'),
        ({"n": 4}, Capability("draws"), None),
        ({"k": 4}, Capability("draws"), 'encoding = { kind = "sparse", n = 50 }'),
        ({"k": 4, "n": 4}, Capability("draws"), 'encoding = { kind = "sparse", n = 50 }'),
        ({"k": 4, "n": 4}, Capability("stratified"), None),
        ({"n": 4}, Capability("stratified"), 'encoding = { kind = "sparse", k = 16, n = 50 }'),
        ({"n": 4}, Capability("label_probability", 2.0), "encoding.temperatures = [1.0, 2.0]"),
        ({"n": 4}, Capability("sum_squares", 1.0), None),
        ({"n": 4, "statistics": False}, Capability("sum_squares", 1.0), "encoding.statistics = true"),
        ({"n": 4, "statistics": False}, Capability("entropy"), "encoding.statistics = true"),
        ({"k": 4, "statistics": False}, Capability("bucket", 1.0), None),
        ({"k": 4}, Capability("moments"), None),
        ({"k": 4}, Capability("standardised", 2.0), "encoding.standardised_temperatures = [2.0]"),
        ({"k": 4, "standardised_temperatures": [2.0]}, Capability("standardised", 2.0), None),
        (
            {"k": 4, "standardised_temperatures": [2.0], "statistics": False},
            Capability("standardised", 2.0),
            "encoding.statistics = true",
        ),
    ],
)
def test_what_is_not_served_is_told_with_the_change_that_would_help(
    options: dict[str, Any], need: Capability, remedy: str | None
) -> None:
    assert SparseEncoding(**options).lacks(need) == remedy


@pytest.mark.parametrize(
    ("need", "names"),
    [
        (Capability("bucket", 1.0), {"ids", "values", "step", "rest"}),
        (Capability("stratified"), {"ids", "values", "step", "rest", "draws", "counts"}),
        (Capability("label_probability", 1.0), {"lse", "statistics"}),
        (Capability("standardised", 1.0), {"ids", "values", "step", "rest", "lse", "statistics"}),
    ],
)
def test_only_what_a_need_takes_is_read_and_that_is_enough(need: Capability, names: set[str]) -> None:
    encoding = SparseEncoding(k=4, n=3, values="8bit", standardised_temperatures=[1])
    arrays = encode(encoding, zipf(2, 50))
    assert set(encoding.array_names([need])) == names
    targets = encoding.decode({name: arrays[name] for name in names}, 50)
    assert (targets.draws_BN is not None, targets.statistics is not None) == ("draws" in names, "lse" in names)


@pytest.mark.parametrize(("k", "n"), [(11, 0), (0, 11), (6, 5)])
def test_more_classes_than_there_are_is_refused(k: int, n: int) -> None:
    SparseEncoding(k=k, n=n).check(11)
    with pytest.raises(BadRequest) as caught:
        SparseEncoding(k=k, n=n).check(10)
    assert (caught.value.found, caught.value.expected) == (f"k = {k}, n = {n}", "k, n and their sum at most 10")


@pytest.mark.parametrize(
    "options", [{}, {"n": 3, "p": 0.5}, {"k": -1}, {"k": 3, "p": 1.0}, {"k": 3, "temperatures": [0]}]
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SparseEncoding(**options)


def test_a_section_without_a_kind_is_dense() -> None:
    read = TypeAdapter(AnyEncoding).validate_python
    assert read({"dtype": "fp16"}) == DenseEncoding(dtype="fp16")
    assert read({"kind": "sparse", "k": 3}) == SparseEncoding(k=3)
    with pytest.raises(ValidationError, match="dense"):
        read({"kind": "head"})


def test_a_job_written_as_json_reads_back() -> None:
    encoding = SparseEncoding(k=3, n=2, p=0.9, temperatures=[4], seed=3)
    assert TypeAdapter(AnyEncoding).validate_json(encoding.model_dump_json()) == encoding


# --- hostile arrays


def faulty(name: str, place: tuple[int, ...], value: float) -> str | None:
    encoding = SparseEncoding(k=3, n=4)
    arrays = {name: stored.numpy().copy() for name, stored in encode(encoding, zipf(5, 50)).items()}
    assert encoding.fault(arrays, 50) is None
    arrays[name][place] = value
    return encoding.fault(arrays, 50)


def test_a_class_that_is_none_is_found() -> None:
    assert faulty("ids", (1, 2), 200).startswith("ids names class 2")  # type: ignore[union-attr]
    assert faulty("draws", (1, 0), 200).startswith("draws names class 2")  # type: ignore[union-attr]


def test_counts_that_are_not_the_draws_are_found() -> None:
    assert faulty("counts", (0, 0), 9) == "counts do not add up to 4"


def test_a_probability_above_1_is_found() -> None:
    assert faulty("rest", (0, 0), 0.5) == "rest holds a probability above 1"


@pytest.mark.parametrize("name", ["values", "rest", "lse", "statistics"])
def test_nan_is_found(name: str) -> None:
    assert faulty(name, (0, 0), math.nan) == f"{name} holds NaN or infinity"


def test_rows_that_were_unreadable_are_zeros_and_no_fault() -> None:
    encoding = SparseEncoding(k=3, n=4)
    arrays = {name: np.zeros_like(stored.numpy()) for name, stored in encode(encoding, zipf(2, 50)).items()}
    assert encoding.fault(arrays, 50) is None
