"""Tiny Shakespeare as dialogues, and a Llama-like teacher that is trained on them: what `chat.cache.toml` reads.

    python jobs/chat_teacher.py tinyshakespeare.txt FOLDER [EPOCHS]

makes in FOLDER `chats/train.jsonl` and `chats/validation.jsonl`, speeches as messages, and in `models/` folders as
`save_pretrained` writes them: `teacher`, in several files; `small`, a config alone; and `cut`, the config of a model
with half of the teacher's layers. About four minutes on one core. It needs the extra `transformers`, and no Stillroom.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

SPEECHES = 4  # of a dialogue: two prompts, two answers
LENGTH = 256  # tokens of the longest dialogue
VOCABULARY = 2048
BATCH = 16
PEAK = 3e-3  # of the learning rate

# What is between the marks of generation is the assistant's.
TEMPLATE = """\
{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}\
{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}\
{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def dialogues(text: str) -> list[list[dict[str, str]]]:
    """Return the play as dialogues of a few speeches each, every other one the assistant's."""
    speeches = [" ".join(part.split("\n")) for part in text.split("\n\n") if ":\n" in part]
    starts = range(0, len(speeches) - SPEECHES + 1, SPEECHES)
    return [
        [{"role": ("user", "assistant")[i % 2], "content": speeches[start + i]} for i in range(SPEECHES)]
        for start in starts
    ]


def learn_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE with a chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=marks, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )


def config(layers: int, width: int) -> LlamaConfig:
    """Return the config of a Llama of this depth and width."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2 * LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids side by side, (B, L), and the same as labels, −100 behind the end of each."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
    return ids, labels


def train(model: LlamaForCausalLM, rows: Sequence[list[int]], epochs: int) -> None:
    """Train on every token of every dialogue."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.95), weight_decay=0.1)
    steps = epochs * math.ceil(len(rows) / BATCH)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, steps, pct_start=0.1)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(rows)).split(BATCH):
            ids, labels = padded([rows[i] for i in batch])
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            rates.step()
            total += loss.item() * len(batch)
        print(f"epoch {epoch + 1} of {epochs}: {total / len(rows):.3f} nats a token", flush=True)


def main(source: Path, folder: Path, epochs: int = 3) -> None:
    """Write the dialogues, and train and save the teacher."""
    torch.manual_seed(0)
    logging.disable_progress_bar()
    text = source.read_text()
    tokenizer = learn_tokenizer(text)
    pairs = [(chat, tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]) for chat in dialogues(text)]
    all_chats, all_rows = zip(*(pair for pair in pairs if len(pair[1]) <= LENGTH), strict=True)
    print(f"{len(all_chats)} of {len(pairs)} dialogues have {LENGTH} tokens or fewer")
    held = len(all_chats) * 9 // 10  # the last tenth of the plays
    (folder / "chats").mkdir(parents=True, exist_ok=True)
    for name, chats in (("train", all_chats[:held]), ("validation", all_chats[held:])):
        lines = "".join(json.dumps({"messages": chat}) + "\n" for chat in chats)
        (folder / "chats" / f"{name}.jsonl").write_text(lines)
    model = LlamaForCausalLM(config(layers=4, width=128))
    train(model, all_rows[:held], epochs)
    for path in (folder / "models" / "teacher", folder / "models" / "small", folder / "models" / "cut"):
        tokenizer.save_pretrained(path)
    model.save_pretrained(folder / "models" / "teacher", max_shard_size="2MB")
    config(layers=2, width=64).save_pretrained(folder / "models" / "small")
    config(layers=2, width=128).save_pretrained(folder / "models" / "cut")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
