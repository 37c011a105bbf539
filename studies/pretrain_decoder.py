# Licensed under the Apache License, Version 2.0; see LICENSE.
"""A small GPT-2 that has read explanations of art but seen no picture: a decoder for studies without a hub.

    python -m studies.pretrain_decoder rows_without_image.csv --held_out artemis.csv --output_dir outputs/decoder
    python train.py --preset paper --text_model outputs/decoder ...

The annotations are ArtEmis CSV files; no pictures are needed. Rows of paintings that `--held_out` names are left out,
so that no painting which a captioner is tested on has been read about. A twentieth of the paintings tells when to
stop. Writes a GPT-2 checkpoint with its tokenizer, and `pretraining.json`.
"""

import math
import random
import sys
from dataclasses import dataclass, field

import torch
from transformers import (
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    Trainer,
    set_seed,
)

from modeling_sevlm.trainer import TokenSafeTrainingArguments
from processing.annotations import read_annotations
from processing.artemis import EMOTIONS
from processing.files import write_json
from processing.images import nfc
from processing.processing_sevlm import BECAUSE, PAD_TOKEN, PROMPT
from processing.tiny_tokenizer import train_tokenizer


@dataclass
class DecoderArguments:
    annotations: list[str] = field(metadata={"help": "ArtEmis CSV files to read."})
    held_out: list[str] = field(
        default_factory=list, metadata={"help": "CSV files whose paintings are left out of the reading."}
    )
    width: int = field(default=128, metadata={"help": "Hidden size."})
    layers: int = 4
    heads: int = 4
    vocab_size: int = 4000
    max_length: int = field(default=40, metadata={"help": "Tokens at which a sentence is cut."})


@dataclass(repr=False)
class DecoderTrainingArguments(TokenSafeTrainingArguments):
    output_dir: str | None = "outputs/decoder"
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_steps: float = 100
    num_train_epochs: float = 4
    per_device_train_batch_size: int = 64
    per_device_eval_batch_size: int = 64
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 1
    load_best_model_at_end: bool | None = True
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)


class Sentences(torch.utils.data.Dataset):
    """`<bos> the emotion is LABEL because EXPLANATION<eos>`, as SEVLM will write them."""

    def __init__(self, rows, tokenizer, max_length: int):
        texts = [
            f"{PROMPT} {emotion}{BECAUSE} {' '.join(utterance.split())}"
            for emotion, utterance in zip(rows["emotion"], rows["utterance"], strict=True)
        ]
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        encoded = tokenizer(texts, split_special_tokens=True)["input_ids"]
        self.input_ids = [[bos, *ids, eos][:max_length] for ids in encoded]

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self.input_ids[index]}


def read_rows(args: DecoderArguments, seed: int):
    """Training and validation rows, no painting in both and none of `held_out`."""

    def read(files):
        return [read_annotations(file, "v1")[0] for file in files]

    held_out = {nfc(painting) for rows in read(args.held_out) for painting in rows["painting"]}
    parts = []
    for rows in read(args.annotations):
        rows["emotion"] = rows["emotion"].str.strip().str.lower()
        parts.append(
            rows[
                rows["emotion"].isin(EMOTIONS) & ~rows["painting"].map(nfc).isin(held_out) & (rows["utterance"] != "")
            ]
        )
    paintings = sorted({painting for rows in parts for painting in rows["painting"]})
    random.Random(seed).shuffle(paintings)
    validation = set(paintings[: max(1, len(paintings) // 20)])

    def choose(wanted: bool):
        chosen = [rows[rows["painting"].isin(validation) == wanted] for rows in parts]
        return {name: [text for rows in chosen for text in rows[name]] for name in ("emotion", "utterance")}

    return choose(False), choose(True)


def main(argv: list[str] | None = None) -> dict:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-"):
        argv = ["--annotations", *argv]
    parser = HfArgumentParser((DecoderArguments, DecoderTrainingArguments), description=__doc__.split("\n")[0])
    args, training_args = parser.parse_args_into_dataclasses(argv)
    set_seed(training_args.seed)
    try:
        train, validation = read_rows(args, training_args.seed)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    if not train["utterance"] or not validation["utterance"]:
        raise SystemExit(f"error: {', '.join(args.annotations)}: no rows of two paintings outside of --held_out.")
    tokenizer = train_tokenizer(train["utterance"], EMOTIONS, args.vocab_size)
    tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    model = GPT2LMHeadModel(
        GPT2Config(
            n_embd=args.width,
            n_layer=args.layers,
            n_head=args.heads,
            n_positions=128,
            # The same function as GPT-2's "gelu_new", as one operation.
            activation_function="gelu_pytorch_tanh",
            attn_pdrop=0.0,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=Sentences(train, tokenizer, args.max_length),
        eval_dataset=Sentences(validation, tokenizer, args.max_length),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    loss = trainer.evaluate()["eval_loss"]
    trainer.save_model()
    report = {
        "parameters": model.num_parameters(),
        "train_rows": len(train["utterance"]),
        "validation_rows": len(validation["utterance"]),
        "validation_loss": loss,
        "validation_perplexity": math.exp(loss),
    }
    if trainer.is_world_process_zero():
        write_json(f"{training_args.output_dir}/pretraining.json", report)
        print(report)
    return report


if __name__ == "__main__":
    main()
