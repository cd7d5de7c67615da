"""What a job may say of students; pydantic alone, no torch.

sections.py   its data, its fleet, and each student
training.py   how one is trained: budget, rates, which weights are kept
model.py      the weights that a student starts from, and an adapter on top of them
terms/        the terms of an objective; `losses/` has what each computes
by_dataset.py a teacher as a term names it, one of all datasets or one of each
job_text.py   a job written out again, every option spelled
steps_taken.py   how the steps of a run were taken, for the job that repeats it
"""
