"""A small convolutional network of Keras, trained on images and converted: the teacher of `keras.cache.toml`.

    python jobs/keras_teacher.py cifar10-train.parquet FOLDER [IMAGES] [EPOCHS]

reads a Parquet file of images (`image {bytes, path}`, `label`), trains on the first IMAGES of it (all; 5 epochs), and
writes `FOLDER/keras.onnx`: channels last, pixels from 0 to 255, which the network scales itself, and a softmax at the
end, as most classifiers of Keras are. It needs no Stillroom, but what the extra `keras` names, pyarrow and Pillow, best
in an environment of its own: TensorFlow is large.
"""

import io
import sys
from pathlib import Path

import keras
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

WIDTHS = (32, 64, 128)
BATCH = 128
PEAK = 2e-3  # of the learning rate


def read(path: str, rows: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return images, (N, H, W, 3) uint8, and labels, (N,)."""
    table = pq.read_table(path, columns=["image", "label"])[:rows]
    images = [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in table["image"].to_pylist()]
    return np.stack([np.asarray(image) for image in images]), table["label"].to_numpy()


def network(shape: tuple[int, ...], classes: int) -> keras.Model:
    """Return a network of blocks of two convolutions, each half as large and twice as wide as the one before."""
    image = hidden = keras.Input(shape, name="images")
    hidden = keras.layers.Rescaling(1 / 255)(hidden)
    for width in WIDTHS:
        for _ in range(2):
            hidden = keras.layers.Conv2D(width, 3, padding="same", use_bias=False)(hidden)
            hidden = keras.layers.BatchNormalization(momentum=0.9)(hidden)
            hidden = keras.layers.Activation("relu")(hidden)
        hidden = keras.layers.MaxPooling2D()(hidden)
    hidden = keras.layers.GlobalAveragePooling2D(name="pooled")(hidden)
    return keras.Model(image, keras.layers.Dense(classes, activation="softmax", name="classes")(hidden))


def main(source: str, folder: str, images: int | None, epochs: int) -> None:
    """Train the network, convert it, and say how good it is on the last tenth, which it was not trained on."""
    keras.utils.set_random_seed(0)
    x, y = read(source, images)
    held = len(x) // 10
    model = network(x.shape[1:], int(y.max()) + 1)
    steps = epochs * -(-(len(x) - held) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps - steps // 5, warmup_target=PEAK, warmup_steps=steps // 5)
    model.compile(keras.optimizers.Adam(rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x[:-held], y[:-held], BATCH, epochs, verbose=2, validation_data=(x[-held:], y[-held:]))
    Path(folder).mkdir(parents=True, exist_ok=True)
    model.export(Path(folder) / "keras.onnx", format="onnx", verbose=False)
    print(f"{folder}/keras.onnx: {model.count_params():,} weights")


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[3:]]
    main(sys.argv[1], sys.argv[2], numbers[0] if numbers else None, numbers[1] if len(numbers) > 1 else 5)
