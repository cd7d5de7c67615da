"""`torchrun --nproc-per-node N -m student_train JOB.toml`: one large student on several processes.

The same as `student train JOB.toml`, which this hands over to: a program, and no part of the room, so that it alone may
import `jobs`.
"""

from __future__ import annotations

import sys

from jobs.cli.student import main

if __name__ == "__main__":
    sys.argv[1:1] = ["train"]
    main()
