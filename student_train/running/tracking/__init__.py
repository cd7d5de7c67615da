"""What a run reports, told to TensorBoard and MLflow once more: listening.py hears it, trackers.py passes it on."""
