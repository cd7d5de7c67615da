"""What the columns of a table are, so that whoever asks for others is told what to write."""

from __future__ import annotations

import pyarrow as pa

from storage.datasets.arrow import class_label

MESSAGES = ("messages", "conversations")


def advice(schema: pa.Schema) -> str:
    """Return what to write in a job for a table of such columns.

    >>> advice(pa.schema({"img": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "fine": pa.int64()}))
    'image = "img", label = "fine"    # or label = "", for none'
    >>> advice(pa.schema({"text": pa.string(), "label": pa.int64()}))
    'of text with a class: column = "text", label = "label", length = 128, train_tokenizer = { vocabulary = 8192 }'
    >>> advice(pa.schema({"text": pa.string()}))
    'of text to continue: column = "text", block = 256, train_tokenizer = { vocabulary = 8192 }'
    >>> advice(pa.schema({"messages": pa.list_(pa.string())}))
    'of chats: column = "messages", tokenizer = FOLDER, length = 2048'
    >>> advice(pa.schema({"a": pa.float32(), "b": pa.float32(), "y": pa.int64()}))
    'of numbers: numeric = ["a", "b"], label = "y"'
    """
    images = [field.name for field in schema if is_image(field.type)]
    numbers = [field.name for field in schema if pa.types.is_integer(field.type)]
    labels = [name for name in numbers if class_label(schema, name)] or numbers
    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    if images:
        label = f'"{labels[0]}"    # or label = "", for none' if labels else '""'
        return f'image = "{images[0]}", label = {label}'
    if chats := [name for name in MESSAGES if name in schema.names]:
        return f'of chats: column = "{chats[0]}", tokenizer = FOLDER, length = 2048'
    learned = "train_tokenizer = { vocabulary = 8192 }"
    if texts and labels:
        return f'of text with a class: column = "{texts[0]}", label = "{labels[0]}", length = 128, {learned}'
    if texts:
        return f'of text to continue: column = "{texts[0]}", block = 256, {learned}'
    kinds = {field.name: field.type for field in schema}
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds.values()):
        of_class = labels[-1] if labels else None
        listed = ", ".join(f'"{name}"' for name in kinds if name != of_class)
        return f"of numbers: numeric = [{listed}]" + (f', label = "{of_class}"' if of_class else "")
    return 'kind = "factory", and a function that makes inputs of these columns'


def is_image(kind: pa.DataType) -> bool:
    """Return whether a column of a type may hold encoded images."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and is_image(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
