"""How the steps of a run were taken: what decides its last bits besides what it was made from. No torch here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from storage.options import Options

Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


class Stretch(Options):
    """Steps in the same company.

    Attributes:
        from_step: of the run, from 0.
        students: that stepped as one program, in their order; of a student by itself its own name.
    """

    from_step: int
    students: Names


class StepsTaken(Options):
    """All steps of a run.

    Attributes:
        stacks: in whose company, from the first step on; rounding depends on how many they are.
        recorded: whether they were replayed as CUDA graphs.
        threads: of torch, where they were taken on a processor; None: on a GPU.
        processes: that shared each batch.
        device, torch_version: where, by what.
    """

    stacks: Annotated[tuple[Stretch, ...], Field(strict=False, min_length=1)]
    recorded: bool
    threads: int | None
    processes: int
    device: str
    torch_version: str

    @property
    def told(self) -> str:
        """Return under which conditions a job that takes steps alike ends at the same bits."""
        threads = "" if self.threads is None else f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        processes = f", {self.processes} processes of torchrun" if self.processes > 1 else ""
        return f"the same weights bit for bit on {self.device}{threads}{processes}, by torch {self.torch_version}"
