"""`--preset authors`: the batches and the optimizer steps of the authors' code, restated here in a few lines."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
)

import train
from modeling_sevlm import convert_sevlm_checkpoint
from modeling_sevlm.adamw import EpsilonFirstAdamW
from modeling_sevlm.trainer import SEVLMTrainingArguments
from processing import VADLexicon
from processing.artemis import EMOTIONS
from processing.collator import SentencePairs, SEVLMCollator
from tests.helpers.training import QUIET_RUN, WITHOUT_EVALUATION, make_trainer, without_dropout
from tests.model.test_fidelity import FIXTURE, write_release


GOLDEN_TEXT = json.loads((FIXTURE / "golden_text.json").read_text())
# Tokens of a padded sentence, and the position where the explanation starts in the authors' code.
LENGTH, START = 30, 6
LEXICON = "word\tvalence\tarousal\tdominance\ncalm\t0.6\t-0.7\t0.2\nslow\t0.1\t-0.8\t-0.1\nharbour\t0.3\t-0.2\t0.4\n"


def write_text_model(folder):
    """A GPT-2 with the tokenizer of the release, before its tokens were added."""
    tokenizer = GPT2Tokenizer(str(FIXTURE / "tokenizer/vocab.json"), str(FIXTURE / "tokenizer/merges.txt"))
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_vision_model(folder):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One step of train.py on the release's rows as a preprocessed file. Returns trainer, tokenizer and folder."""
    folder = tmp_path_factory.mktemp("authors")
    tokenizer = write_text_model(folder / "gpt2")
    write_vision_model(folder / "clip")
    (folder / "lexicon.tsv").write_text(LEXICON)
    lines = ["art_style,painting,emotion,utterance,utterance_spelled,split"]
    for row, (emotion, text) in enumerate(zip(GOLDEN_TEXT["emotions"], GOLDEN_TEXT["explanations"], strict=True)):
        lines.append(f'Pop_Art,painting-{row // 2},{emotion},Raw!,"{text}",train')
    lines += ["Pop_Art,uniform,awe,Raw!,everyone felt the same,train"] * 2
    lines += ["Pop_Art,validation,awe,Raw!,a picture to validate,val"]
    (folder / "artemis.csv").write_text("\n".join(lines) + "\n")
    for number, name in enumerate(("painting-0", "painting-1", "painting-2", "uniform", "validation")):
        noise = np.random.default_rng(number).integers(0, 255, (50, 70, 3), dtype=np.uint8)
        (folder / "images/Pop_Art").mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(folder / f"images/Pop_Art/{name}.png")
    data = ["--annotations", str(folder / "artemis.csv"), "--images", str(folder / "images")]
    data += ["--text_column", "utterance_spelled", "--vad_lexicon", str(folder / "lexicon.tsv")]
    models = ["--vision_model", str(folder / "clip"), "--text_model", str(folder / "gpt2")]
    quiet = [argument for argument in QUIET_RUN if argument not in ("--per_device_train_batch_size", "8")]
    arguments = [*data, *models, *quiet, *WITHOUT_EVALUATION, "--max_steps", "1", "--save_strategy", "no"]
    return train.main(["--preset", "authors", *arguments, "--output_dir", str(folder / "out")]), tokenizer, folder


@pytest.fixture(scope="module")
def batch(run):
    trainer, *_ = run
    items = sorted((trainer.train_dataset[i] for i in range(len(trainer.train_dataset))), key=lambda i: i["painting"])
    assert [item["painting"] for item in items] == [f"Pop_Art/painting-{i}" for i in range(3)]  # "uniform" is dropped
    return trainer.data_collator(items)


def test_a_batch_has_the_tokens_segments_and_labels_of_the_authors_loader(batch):
    golden = load_file(FIXTURE / "golden.safetensors")
    for name in ("input_ids", "token_type_ids", "labels"):
        assert batch[name].flatten(0, 1).tolist() == golden[f"in.{name}"].tolist(), name


def test_the_pair_is_the_last_annotation_and_one_of_another_emotion(run):
    trainer, *_ = run
    for epoch in range(3):
        trainer.train_dataset.set_epoch(epoch)
        for index in range(3):
            item = trainer.train_dataset[index]
            row = 2 * int(item["painting"][-1])
            assert item["emotions"] == GOLDEN_TEXT["emotions"][row + 1 : row - 1 if row else None : -1]


def test_padding_counts_as_text_and_has_neither_label_nor_vad(run, batch):
    trainer, *_ = run
    item = dict(trainer.train_dataset[0], explanations=["short", "also short"])
    rows = trainer.data_collator([item])
    padding = rows["input_ids"].eq(trainer.processing_class.tokenizer.pad_token_id)
    assert rows["input_ids"].shape == (1, 2, LENGTH) and padding.any()
    assert rows["attention_mask"].eq(1).all() and batch["attention_mask"].eq(1).all()
    assert rows["labels"][padding].eq(-100).all() and rows["vad_values"][padding].eq(0).all()


def test_vad_is_looked_up_for_each_piece_on_its_own(run, batch):
    _, tokenizer, _ = run
    lexicon = {line.split("\t")[0]: [float(v) for v in line.split("\t")[1:]] for line in LEXICON.splitlines()[1:]}
    for ids, rows in zip(batch["input_ids"].flatten(0, 1), batch["vad_values"].flatten(0, 1), strict=True):
        pieces = [tokenizer.convert_ids_to_tokens(int(i)) or "" for i in ids]
        wanted = torch.tensor([lexicon.get(piece.replace("Ġ", ""), [0.0, 0.0, 0.0]) for piece in pieces])
        torch.testing.assert_close(rows, wanted)
    assert batch["vad_values"].any()


def test_the_model_looks_vad_up_by_piece_too(run, batch):
    trainer, *_ = run
    torch.testing.assert_close(trainer.model.vad_lookup(batch["input_ids"]), batch["vad_values"])


def test_pixels_are_squashed_bilinearly_and_normalised_with_imagenets_statistics(run, batch):
    *_, folder = run
    image = Image.open(folder / "images/Pop_Art/painting-1.png").resize((32, 32), Image.Resampling.BILINEAR)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    wanted = torch.tensor((np.asarray(image) / 255 - mean) / deviation).permute(2, 0, 1).float()
    torch.testing.assert_close(batch["pixel_values"][1], wanted, atol=1e-5, rtol=0)


def test_optimizer_and_schedule_are_the_authors(run):
    trainer, *_ = run
    rate_of = {p: group["initial_lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    named = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert {rate_of[p] for name, p in named.items() if name.startswith("emotion_encoder.")} == {4e-5}
    assert {rate_of[p] for name, p in named.items() if not name.startswith("emotion_encoder.")} == {2e-5}
    assert all(group["weight_decay"] == 0 for group in trainer.optimizer.param_groups)
    args = trainer.args
    assert (args.adam_epsilon, args.max_grad_norm, args.adam_beta1, args.adam_beta2) == (1e-6, 0, 0.9, 0.999)
    assert (args.lr_scheduler_type, args.warmup_steps, args.per_device_train_batch_size) == ("linear", 0, 32)
    assert (args.num_train_epochs, args.eval_steps) == (35, 2000)


def test_the_checkpoint_remembers_the_preset(run):
    trainer, _, folder = run
    saved = json.loads((folder / "out/config.json").read_text())
    assert saved["protocol"]["preset"] == "authors"
    assert saved["protocol"]["text_column"] == "utterance_spelled" and not saved["protocol"]["clean_text"]
    assert (saved["explanation_start"], saved["emotion_encoder_attention"]) == (START, "bidirectional")
    assert json.loads((folder / "out/processor_config.json").read_text())["explanation_after"] == "last"


def pairs_with_features(paintings: int = 8) -> SentencePairs:
    draw = torch.Generator().manual_seed(0)
    columns = {"painting": Value("string"), "emotions": List(ClassLabel(names=EMOTIONS))}
    features = Features(columns | {"explanations": List(Value("string"))})
    texts = GOLDEN_TEXT["explanations"]
    rows = {
        "painting": [f"painting {i}" for i in range(paintings)],
        "emotions": [[i % 9, (i + 3) % 9] for i in range(paintings)],
        "explanations": [[texts[i % 6][: 20 + 15 * i], texts[(i + 1) % 6]] for i in range(paintings)],
    }
    images = [torch.randn(9, 32, generator=draw, dtype=torch.float64) for _ in range(paintings)]
    return SentencePairs(Dataset.from_dict(rows, features=features), features=images, first="last")


def authors_losses(model, batch, alpha):
    """The losses of the authors' code, from logits and hidden states of rows without any mask."""
    ids, labels, vad = (batch[name].flatten(0, 1) for name in ("input_ids", "labels", "vad_values"))
    inputs = {name: batch[name] for name in ("input_ids", "token_type_ids", "image_features")}
    outputs = model(**inputs, vad_values=batch["vad_values"].double(), output_hidden_states=True)
    logits, hidden = outputs.logits.flatten(0, 1), outputs.hidden_states[-1]
    language = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    predicted, wanted = model.vad_head(hidden[:, START - 1 :])[:, :-1], vad[:, START:].double()
    known = wanted.ne(0).any(dim=-1)
    emotion = (predicted - wanted)[known].square().mean()
    image = batch["image_features"].mean(dim=1).repeat_interleave(2, dim=0)
    label, explanation = hidden[:, :START].mean(dim=1), hidden[:, START:].mean(dim=1)
    pictures = len(ids) // 2
    swapped = [row + 1 - 2 * (row % 2) for row in range(len(ids))]
    # Any other picture of the batch; the batch is shuffled, so the next one is as random as any.
    other = [(row + 2) % (2 * pictures) for row in range(len(ids))]
    scores = [
        model.contrastive_head.mlp(torch.cat([image, label, candidate], dim=-1)).squeeze(-1).exp()
        for candidate in (explanation, explanation[swapped], explanation[other])
    ]
    contrastive = -(scores[0] / sum(scores)).log().mean()
    return language + emotion + alpha * contrastive


def authors_step(state, parameters, rates, step, epsilon=1e-6, beta1=0.9, beta2=0.999):
    """AdamW of transformers 4, without weight decay and clipping."""
    for (name, parameter), rate in zip(parameters.items(), rates, strict=True):
        mean, square = state.setdefault(name, (torch.zeros_like(parameter), torch.zeros_like(parameter)))
        mean.mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        size = rate * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        parameter.data.addcdiv_(mean, square.sqrt() + epsilon, value=-size)
        parameter.grad = None


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    lexicon = folder / "lexicon.tsv"
    lexicon.write_text(LEXICON)
    return convert_sevlm_checkpoint.convert(write_release(folder / "r"), "best-acc", VADLexicon.from_file(lexicon))


def test_fifty_steps_in_float64_follow_a_restatement_of_the_authors_loop(released, tmp_path):
    model, processor = released
    model = without_dropout(model.double())
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    pairs, batches, losses = pairs_with_features(), [], []
    collate = SEVLMCollator(processor)

    def recorded(items):
        batches.append(collate(items))
        return dict(batches[-1])

    known = SEVLMTrainingArguments.__dataclass_fields__.keys() - {"total_batch_size"}
    preset = {name: value for name, value in train.PRESETS["authors"].items() if name in known}
    preset |= {"metric_for_best_model": None, "lr_scheduler_type": "linear", "dataloader_num_workers": 0}
    # Fifty times the rates, so that the losses move.
    rates = {"learning_rate": 1e-3, "vad_learning_rate": 2e-3}
    options = {"train_dataset": pairs, "collator": recorded, "num_train_epochs": 25, "fp16": False}
    trainer = make_trainer(model, processor, tmp_path, **options, **preset | rates)
    compute_loss = trainer.compute_loss
    trainer.compute_loss = lambda *args, **kwargs: _keep(losses, compute_loss(*args, **kwargs))
    trainer.train()
    assert len(losses) == 50 and losses[-1] < losses[0] - 0.1

    trained = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.load_state_dict(start, strict=False)
    model.train()
    parameters, state, restated = dict(model.named_parameters()), {}, []
    for step, batch in enumerate(batches[:50]):
        loss = authors_losses(model, batch, alpha=model.config.contrastive_loss_weight)
        loss.backward()
        decay = 1 - step / 50
        steps = [decay * (2e-3 if name.startswith("emotion_encoder.") else 1e-3) for name in parameters]
        authors_step(state, parameters, steps, step + 1)
        restated.append(loss.item())
    assert max(abs(one - other) for one, other in zip(losses, restated, strict=True)) < 1e-8
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.data, trained[name], atol=1e-8, rtol=0)


def _keep(values: list[float], loss: torch.Tensor) -> torch.Tensor:
    values.append(loss.item())
    return loss


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--resample", "bicubic"),
        ("--max_grad_norm", "1"),
        ("--clean_text", "false"),
        ("--explanation_start", "5"),
        ("--ask_every_label", "false"),
        ("--generation_samples", "10"),
        ("--lr_scheduler_type", "cosine"),
        ("--weight_decay", "0.1"),
    ],
)
def test_an_option_that_contradicts_the_preset_is_refused_in_one_line(option, value, tmp_path):
    arguments = ["--preset", "authors", "--annotations", "a.csv", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=f"error: {option} .* contradicts --preset authors") as error:
        train.main([*arguments, option, value])
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def parsed(*options):
    return train.parse(["--preset", "authors", "--annotations", "a.csv", *options])


def test_only_the_column_of_the_preprocessed_file_counts_as_cleaned_and_filtered():
    for column in ([], ["--text_column", "utterance"], ["--text_column", "translation"]):
        _, data, _ = parsed(*column)
        assert (data.clean_text, data.min_tokens, data.max_length_percentile) == (True, 5, 95)
    _, data, _ = parsed("--text_column", "utterance_spelled")
    assert (data.clean_text, data.min_tokens, data.max_length_percentile) == (False, None, None)


def test_less_memory_is_asked_for_with_accumulation_not_with_another_batch():
    *_, args = parsed("--gradient_accumulation_steps", "4", "--per_device_train_batch_size", "8")
    assert (args.per_device_train_batch_size, args.total_batch_size) == (8, 32)
    with pytest.raises(SystemExit, match="--per_device_train_batch_size 8 contradicts --total_batch_size 32"):
        parsed("--per_device_train_batch_size", "8")


def test_shortened_options_are_refused():
    with pytest.raises(SystemExit, match="unknown argument --prese"):
        train.parse(["--prese", "authors", "--annotations", "a.csv"])


def test_a_restored_optimizer_counts_its_steps_on():
    losses = []
    for interrupted in (False, True):
        parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = EpsilonFirstAdamW([parameter], lr=0.1, eps=1e-2)
        for step in range(4):
            if interrupted and step == 2:
                state, optimizer = optimizer.state_dict(), EpsilonFirstAdamW([parameter], lr=0.1, eps=1e-2)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            (parameter * torch.tensor([0.1, 1.0, 5.0])).pow(2).sum().backward()
            optimizer.step()
        losses.append(parameter.detach().clone())
    assert torch.equal(*losses)
