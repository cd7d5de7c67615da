"""What the built-in architectures refuse."""

from __future__ import annotations

from storage.errors import BadRequest


def require_image(architecture: str, input_shape: tuple[int, ...], *, halvings: int) -> int:
    """Return the number of channels of an image large enough to be halved so often.

    Raises:
        BadRequest: the inputs are no images, or too small.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < 2**halvings:
        raise BadRequest(
            f"architecture {architecture!r} cannot take these inputs",
            found=f"inputs of shape {input_shape}",
            expected=f"images (channels, height, width) of {2**halvings} by {2**halvings} pixels or more",
            do='choose another architecture, such as "mlp", or fewer stages',
        )
    return input_shape[0]
