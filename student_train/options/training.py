"""How one student is trained: for how long, at which rates, in which parts, and which of its weights are kept.

No torch here, so that a job file is checked before anything slow is imported.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from storage.options import Options
from student_train.options.terms import Fraction

EPOCHS = 20  # where the job names neither these nor steps
PEAK_LEARNING_RATE = {"sgd": 0.1, "adamw": 1e-3}  # where the job names none
ADAMW_BETA2, ADAMW_EPS = 0.999, 1e-8  # torch's

Schedule = Literal["cosine", "linear", "constant", "wsd"]
Figure = Literal[
    "accuracy", "cross_entropy", "agreement", "macro_f1", "calibration_error", "kl", "cosine", "spearman", "retrieval",
    "rmse", "r2",
]  # fmt: skip
OF_VECTORS = frozenset({"cosine", "spearman", "retrieval"})  # of these figures
OF_NUMBERS = frozenset({"rmse", "r2"})
LESS_IS_BETTER = frozenset(
    {"cross_entropy", "calibration_error", "kl", "rmse"}
)  # of these figures; of the others more is

# Keys that runs of before had not. Where they say nothing they are no part of what a run is made from.
LATER_KEYS = frozenset(
    {
        "adapter",
        "max_steps",
        "warmup_steps",
        "learning_rate_floor",
        "decay_share",
        "betas",
        "eps",
        "decay_norms_and_biases",
        "micro_batch_size",
        "quantize",
        "recompute",
        "size",
        "filter",
        "evaluate_every_steps",
        "best_by",
        "patience_evaluations",
    }
)


def goodness(figure: Figure, value: float) -> float:
    """Return what is more of the better of two values of a figure.

    >>> goodness("accuracy", 0.9), goodness("cross_entropy", 0.5)
    (0.9, -0.5)
    """
    return -value if figure in LESS_IS_BETTER else value


def _epochs(given: dict[str, Any]) -> int | None:
    return EPOCHS if given.get("max_steps") is None else None


class TrainingOptions(Options):
    """How one student is trained."""

    # One of both; steps end in the middle of an epoch where they do, or go on into the next.
    max_steps: Annotated[int, Field(ge=1)] | None = None
    epochs: Annotated[int, Field(ge=1)] | None = Field(default_factory=_epochs)
    batch_size: Annotated[int, Field(ge=1)] = 128
    # Rows that go through the network at a time; a step is of the whole batch all the same. None: all of them.
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None

    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0, le=1000)] | None = None  # at its peak; None: 0.1 (SGD), 0.001 (AdamW)
    momentum: Fraction = 0.9  # SGD's (Nesterov's form), or AdamW's first beta
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] | None = None  # AdamW's; None: momentum, 0.999
    eps: Annotated[float, Field(gt=0, le=1)] = ADAMW_EPS  # AdamW's
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 5e-4
    decay_norms_and_biases: bool = True
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0  # the learning rate rises from 0 in a straight line
    warmup_steps: Annotated[int, Field(ge=0)] | None = None  # the same in steps
    schedule: Schedule = "cosine"  # after the warm-up
    learning_rate_floor: Fraction = 0.0  # where it ends, as a share of the peak
    decay_share: Annotated[float, Field(gt=0, le=1)] = 0.1  # of all steps, in which "wsd" falls
    clip_norm: Annotated[float, Field(gt=0)] | None = None  # of the gradient over all parameters
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None  # averaged weights are evaluated and exported

    evaluate_every_steps: Annotated[int, Field(ge=1)] | None = None  # besides after every epoch
    best_by: Figure | None = None  # of the best evaluation the weights are exported; None, no patience: of the last
    patience_epochs: Annotated[int, Field(ge=1)] | None = None  # stop when no better for so long; keep the best
    patience_evaluations: Annotated[int, Field(ge=1)] | None = None  # the same in evaluations

    autocast: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    recompute: bool = False  # blocks run again in the backward pass, in place of keeping their activations
    checkpoint_every_steps: Annotated[int, Field(ge=1)] | None = None  # besides one after every epoch

    @model_validator(mode="after")
    def _one_budget(self) -> TrainingOptions:
        if self.max_steps is not None and self.epochs is not None:
            raise ValueError(f"give max_steps ({self.max_steps}) or epochs ({self.epochs}), not both")
        if self.warmup_steps is not None and self.warmup_epochs:
            raise ValueError(f"give warmup_steps ({self.warmup_steps}) or warmup_epochs ({self.warmup_epochs:g})")
        if self.patience_epochs is not None and self.patience_evaluations is not None:
            raise ValueError("give patience_epochs or patience_evaluations, not both")
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size ({self.micro_batch_size}) is to be a part of batch_size ({self.batch_size}), or all"
            )
        # What is in other units than the budget is compared once the rows are counted (`preparing/checks.py`).
        if self.epochs is not None and self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs:g}) is longer than epochs ({self.epochs})")
        for name in ("warmup_steps", "evaluate_every_steps"):
            steps = getattr(self, name)
            if self.max_steps is not None and steps is not None and steps > self.max_steps:
                raise ValueError(f"{name} ({steps}) is more than max_steps ({self.max_steps})")
        return self

    @model_validator(mode="after")
    def _nothing_idle(self) -> TrainingOptions:
        """Refuse what would do nothing."""
        defaults = TrainingOptions.model_fields
        idle = {
            "decay_share": ('schedule = "wsd"', self.schedule != "wsd"),
            "learning_rate_floor": ("a schedule that falls", self.schedule == "constant"),
            "betas": ('optimizer = "adamw"', self.optimizer != "adamw"),
            "eps": ('optimizer = "adamw"', self.optimizer != "adamw"),
        }
        for name, (of, nothing) in idle.items():
            if nothing and getattr(self, name) != defaults[name].default:
                raise ValueError(f"{name} is of {of}; here it would do nothing")
        if self.betas is not None and self.momentum not in (self.betas[0], defaults["momentum"].default):
            raise ValueError(
                f"betas ({self.betas[0]:g}, …) and momentum ({self.momentum:g}) are of one thing: drop one"
            )
        return self

    @property
    def peak_learning_rate(self) -> float:
        """Return the learning rate after the warm-up."""
        return PEAK_LEARNING_RATE[self.optimizer] if self.learning_rate is None else self.learning_rate

    @property
    def adamw_betas(self) -> tuple[float, float]:
        """Return AdamW's."""
        return (self.momentum, ADAMW_BETA2) if self.betas is None else self.betas

    @property
    def rows_at_once(self) -> int:
        """Return how many rows go through the network at a time."""
        return self.batch_size if self.micro_batch_size is None else self.micro_batch_size

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the best evaluation are exported, and not those of the last."""
        return any(each is not None for each in (self.best_by, self.patience_epochs, self.patience_evaluations))

    def total_steps(self, steps_an_epoch: int) -> int:
        """Return the steps of the whole run."""
        if self.epochs is not None:
            return self.epochs * steps_an_epoch
        assert self.max_steps is not None  # one of both is there
        return self.max_steps

    def rise_steps(self, steps_an_epoch: int) -> float:
        """Return the steps of the warm-up."""
        return self.warmup_epochs * steps_an_epoch if self.warmup_steps is None else self.warmup_steps
