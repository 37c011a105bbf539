"""A small GPT-2 that has read explanations of art but seen no image: a decoder for studies without the Hub.

    python -m studies.pretrain_decoder rows_without_image.csv --held_out artemis.csv --output_dir outputs/decoder
    python train.py --preset paper --text_model outputs/decoder ...

Reads ArtEmis CSV files without the paintings in `--held_out`, so that the decoder never reads about a test painting.
A twentieth of the paintings is used for validation. Writes a GPT-2 checkpoint with its
tokenizer, and `pretraining.json`.
"""

import math
import random
import sys
from dataclasses import dataclass, field

import pandas as pd
import torch
from transformers import DataCollatorForLanguageModeling, GPT2Config, GPT2LMHeadModel, HfArgumentParser, Trainer

from modeling_sevlm.trainer import TokenSafeTrainingArguments
from processing.annotations import read_annotations
from processing.artemis import EMOTIONS
from processing.files import write_json
from processing.processing_sevlm import BECAUSE, PAD_TOKEN, PROMPT
from processing.script_utils import errors_as_exit
from processing.tiny_tokenizer import train_tokenizer


@dataclass
class DecoderArguments:
    annotations: list[str] = field(metadata={"help": "ArtEmis CSV files to read."})
    held_out: list[str] = field(default_factory=list, metadata={"help": "CSV files whose paintings are left out."})
    width: int = field(default=128, metadata={"help": "Hidden size."})
    layers: int = 4
    heads: int = 4
    vocab_size: int = 4000
    max_length: int = field(default=40, metadata={"help": "Longest sentence in tokens; the rest is cut off."})


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


def encode(rows: pd.DataFrame, tokenizer, max_length: int) -> list[dict[str, list[int]]]:
    """`<bos> the emotion is LABEL because EXPLANATION<eos>`, as SEVLM will write it."""
    texts = f"{PROMPT} " + rows["emotion"] + f"{BECAUSE} " + rows["utterance"].str.split().str.join(" ")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    encoded = tokenizer(texts.tolist(), split_special_tokens=True)["input_ids"]
    return [{"input_ids": [bos, *ids, eos][:max_length]} for ids in encoded]


def read_rows(args: DecoderArguments, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns training and validation rows, which share no painting with each other or with `held_out`."""
    rows = pd.concat([read_annotations(file, "v1")[0] for file in args.annotations])
    rows["emotion"] = rows["emotion"].str.strip().str.lower()
    held_out = [read_annotations(file, "v1")[0]["painting"].str.normalize("NFC") for file in args.held_out]
    known = rows["painting"].str.normalize("NFC").isin(pd.concat([pd.Series(dtype=str), *held_out]))
    rows = rows[rows["emotion"].isin(EMOTIONS) & ~known & (rows["utterance"] != "")]
    paintings = sorted(rows["painting"].unique())
    random.Random(seed).shuffle(paintings)
    validation = rows["painting"].isin(paintings[: max(1, len(paintings) // 20)])
    return rows[~validation], rows[validation]


def main(argv: list[str] | None = None) -> dict:
    argv = ["--annotations", *(sys.argv[1:] if argv is None else argv)]
    parser = HfArgumentParser((DecoderArguments, DecoderTrainingArguments), description=__doc__.split("\n")[0])
    args, training_args = parser.parse_args_into_dataclasses(argv)
    torch.manual_seed(training_args.seed)
    with errors_as_exit():
        training_args.check_output_dir()
        train, validation = read_rows(args, training_args.seed)
    if train.empty or validation.empty:
        raise SystemExit(f"error: {', '.join(args.annotations)}: fewer than two paintings outside --held_out.")
    tokenizer = train_tokenizer(train["utterance"], EMOTIONS, args.vocab_size)
    tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    # The same function as GPT-2's "gelu_new", as one operation.
    settings = {"activation_function": "gelu_pytorch_tanh", "attn_pdrop": 0.0, "vocab_size": len(tokenizer)}
    settings |= {"n_embd": args.width, "n_layer": args.layers, "n_head": args.heads, "n_positions": 128}
    settings |= {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    model = GPT2LMHeadModel(GPT2Config(**settings))
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=encode(train, tokenizer, args.max_length),
        eval_dataset=encode(validation, tokenizer, args.max_length),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )
    training_args.clear_output_dir()
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    loss = trainer.evaluate()["eval_loss"]
    trainer.save_model()
    report = {"parameters": model.num_parameters(), "train_rows": len(train), "validation_rows": len(validation)}
    report |= {"validation_loss": loss, "validation_perplexity": math.exp(loss)}
    if trainer.is_world_process_zero():
        write_json(f"{training_args.output_dir}/pretraining.json", report)
        print(report)
    return report


if __name__ == "__main__":
    main()
