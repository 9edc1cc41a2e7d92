#!/usr/bin/env python3
"""Makes tests/golden/tokens: vocabularies, tokenizer settings and expected ids of every prompt.

    python tests/golden/make_tokens.py PATH/TO/FLUX.1-dev

The folder is a copy of the model's own repository; only its tokenizer and tokenizer_2 are read.
Needs the Python packages named in tokens/README.md and the zstd command.

Expected ids come from the reference tokenizers themselves, never from this project's code.
"""
import base64
import json
import pathlib
import struct
import subprocess
import sys

import sentencepiece
import tokenizers
import transformers
from sentencepiece import sentencepiece_model_pb2 as sp_model

HERE = pathlib.Path(__file__).parent / "tokens"
CLIP_LENGTH = 77
T5_LENGTH = 512
T5_EXTRA_IDS = 100


def write_zst(name, data):
    """zstd -19 with a checksum; the same bytes in give the same bytes out."""
    packed = subprocess.run(["zstd", "-19", "-q", "--check", "-c"], input=data,
                            stdout=subprocess.PIPE, check=True).stdout
    path = HERE / (name + ".zst")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(packed)
    print(f"{path.name}: {len(data)} -> {len(packed)} bytes")


def write_ids(name, rows):
    (HERE / name).write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))


def check_clip_merges(folder):
    """merges.txt alone must reproduce vocab.json, since only the first is stored."""
    vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = 256 + len(set(range(256)) - set(plain))
    symbols = [chr(c) for c in [*plain, *range(256, rest)]]
    symbols += [s + "</w>" for s in symbols]
    lines = (folder / "merges.txt").read_text("utf-8").split("\n")[1:]
    symbols += [line.replace(" ", "") for line in lines if line]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    assert vocab == {symbol: index for index, symbol in enumerate(symbols)}


def clip_ids(folder, prompts):
    tokenizer = transformers.CLIPTokenizerFast.from_pretrained(folder)
    assert tokenizer.model_max_length == CLIP_LENGTH
    rows = []
    for prompt in prompts:
        row = tokenizer(prompt, truncation=True, max_length=CLIP_LENGTH).input_ids
        padded = tokenizer(prompt, padding="max_length", truncation=True,
                           max_length=CLIP_LENGTH).input_ids
        assert padded == row + [tokenizer.pad_token_id] * (CLIP_LENGTH - len(row))
        rows.append(row)
    return rows


def t5_ids(folder, prompts):
    """tokenizer.json is the definition.  transformers 5 replaces its normalizer and splitter with
    its own, so the file is given to the tokenizers library directly."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = []
    for prompt in prompts:
        row = tokenizer.encode(prompt).ids
        rows.append(row if len(row) <= T5_LENGTH else row[:T5_LENGTH - 1] + row[-1:])
    wrapped = transformers.T5TokenizerFast.from_pretrained(folder)
    assert wrapped.model_max_length == T5_LENGTH
    for prompt, row in zip(prompts, rows):
        other = wrapped(prompt, truncation=True, max_length=T5_LENGTH).input_ids
        if other != row:
            print(f"transformers {transformers.__version__} differs on {prompt[:60]!r}")
    return rows


def f32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def make_spiece(data):
    """The SentencePiece file of the same vocabulary, which the FLUX.1 repositories also carry."""
    pieces = data["model"]["vocab"][:-T5_EXTRA_IDS]
    assert all(f32(score) == score for _, score in pieces)
    model = sp_model.ModelProto()
    kinds = {"<pad>": sp_model.ModelProto.SentencePiece.CONTROL,
             "</s>": sp_model.ModelProto.SentencePiece.CONTROL,
             "<unk>": sp_model.ModelProto.SentencePiece.UNKNOWN}
    for text, score in pieces:
        kind = kinds.get(text, sp_model.ModelProto.SentencePiece.NORMAL)
        model.pieces.add(piece=text, score=score, type=kind)
    trainer = model.trainer_spec
    trainer.model_type = sp_model.TrainerSpec.UNIGRAM
    trainer.vocab_size = len(pieces)
    trainer.pad_id, trainer.eos_id, trainer.unk_id, trainer.bos_id = 0, 1, 2, -1
    normalizer = model.normalizer_spec
    normalizer.name = "nmt_nfkc"
    normalizer.precompiled_charsmap = base64.b64decode(
        data["normalizer"]["normalizers"][0]["precompiled_charsmap"])
    normalizer.add_dummy_prefix = True
    normalizer.remove_extra_whitespaces = True
    normalizer.escape_whitespaces = True
    return model.SerializeToString(deterministic=True)


def check_spiece(model, prompts, rows):
    """Native SentencePiece reads the file and agrees on ASCII prompts without special tokens.  It
    adds scores in single precision, so very long words with many equal cuts are left out."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    compared = 0
    for prompt, row in zip(prompts, rows):
        if not prompt.isascii() or "<" in prompt or not prompt.isprintable():
            continue
        if max(map(len, prompt.split()), default=0) > 120:
            continue
        ids = processor.encode(prompt)
        assert (ids + [1])[:T5_LENGTH - 1] == row[:T5_LENGTH - 1], prompt
        compared += 1
    print(f"sentencepiece {sentencepiece.__version__} agrees on {compared} ASCII prompts")


def main():
    source = pathlib.Path(sys.argv[1])
    clip, t5 = source / "tokenizer", source / "tokenizer_2"
    prompts = json.loads((HERE / "prompts.json").read_text("utf-8"))
    data = json.loads((t5 / "tokenizer.json").read_text("utf-8"))

    check_clip_merges(clip)
    write_ids("clip_ids.txt", clip_ids(clip, prompts))
    rows = t5_ids(t5, prompts)
    write_ids("t5_ids.txt", rows)

    model = make_spiece(data)
    check_spiece(model, prompts, rows)
    write_zst("t5/spiece.model", model)
    write_zst("t5/tokenizer.json", (t5 / "tokenizer.json").read_bytes())
    write_zst("clip/merges.txt", (clip / "merges.txt").read_bytes())
    for folder, name in ((clip, "clip"), (t5, "t5")):
        settings = "tokenizer_config.json"
        write_zst(f"{name}/{settings}", (folder / settings).read_bytes())
    print(f"{len(prompts)} prompts; transformers {transformers.__version__}, "
          f"tokenizers {tokenizers.__version__}")


if __name__ == "__main__":
    main()
