"""torchrun and deepspeed lines of FastChat's documents: each flag is honoured, told or refused by name."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.cli import root
from launcher.errors import UsageError
from launcher.foreign.flags import FLAGS
from launcher.foreign.line import Line, translate
from launcher.foreign.takeover import asked_for, merge
from launcher.planning.plan import TrainRequest
from launcher.request import make_request
from launcher.train_options import Asked
from tests.conftest import Ran
from tests.trainer.test_zero_config import FASTCHAT_S2, SIXTEEN_GB
from trainer.config import TrainConfig, override

Vlaunch = Callable[..., Ran]

# The figures and flags of the documents' command lines.
REPORT = '--report_to "tensorboard"'
SEED_001 = """
torchrun --nproc_per_node=2 --master_port=20001 fastchat/train/train_mem.py \\
    --model_name_or_path {model}  \\
    --data_path playground/data/dummy.json \\
    --bf16 True \\
    --output_dir ../fine_tuning_output/{output} \\
    --num_train_epochs 2 \\
    --per_device_train_batch_size 1 \\
    --per_device_eval_batch_size 1 \\
    --gradient_accumulation_steps 8 \\
    --evaluation_strategy "no" \\
    --save_strategy "steps" \\
    --save_steps 300 \\
    --save_total_limit 10 \\
    --learning_rate 2e-5 \\
    --weight_decay 0. \\
    --warmup_ratio 0.03 \\
    --lr_scheduler_type "cosine" \\
    --logging_steps 1 \\
    {report} \\
    --fsdp "full_shard auto_wrap" \\
    --fsdp_transformer_layer_cls_to_wrap 'LlamaDecoderLayer' \\
    --tf32 True \\
    --model_max_length 2048 \\
    --gradient_checkpointing True \\
    --lazy_preprocess True
"""
MODELS_001 = {  # base model: last part of the output folder
    "../vicuna-7b-all-v1.1": "base-vicuna-7b-all-v1.1-dummy",
    "../vicuna-13b-all-v1.1": "base-vicuna-13b-all-v1.1-dummy",
    "../llama-13b-hf": "base-llama-13b-hf-dummy",
    "../llama-7b-hf": "base-llama-7b-hf-dummy",
}
SEED_002 = """
torchrun \\
    --nnodes=1 \\
    --nproc_per_node=1 \\
    --master_port=12375 \\
    chatserver/train/train_flash_attn.py \\
    --model_name_or_path {model} \\
    --data_path {data} \\
    --bf16 True \\
    --output_dir ./checkpoints \\
    --num_train_epochs 3 \\
    --per_device_train_batch_size 4 \\
    --per_device_eval_batch_size 4 \\
    --gradient_accumulation_steps 1 \\
    --evaluation_strategy "no" \\
    --save_strategy "steps" \\
    --save_steps 1200 \\
    --save_total_limit 100 \\
    --learning_rate 2e-5 \\
    --weight_decay 0. \\
    --warmup_ratio 0.03 \\
    --lr_scheduler_type "cosine" \\
    --logging_steps 1 \\
    --fsdp "full_shard auto_wrap" \\
    --fsdp_transformer_layer_cls_to_wrap 'LlamaDecoderLayer' \\
    --tf32 True \\
    --model_max_length 2048 \\
    --gradient_checkpointing True \\
    --lazy_preprocess True
"""
# With the document's spaces behind backslashes and its comments, which break the line in a shell.
SEED_004_TWO = """
#nohup \\ 
deepspeed --num_gpus=2 fastchat/train/train_lora.py \\
  --deepspeed ./deepspeed-config.json \\ 
  --lora_r 8 \\ 
  --lora_alpha 16 \\ 
  --lora_dropout 0.05 \\ 
  --model_name_or_path ./pyllama_data/output/7B \\ 
  --data_path ./data/sharegpt_clean_split.json \\ 
  --fp16 True \\ 
  --output_dir ./output \\ 
  --num_train_epochs 1 \\ 
  --per_device_train_batch_size 14 \\ 
  --per_device_eval_batch_size 14 \\ 
  --gradient_accumulation_steps 1 \\ 
  --evaluation_strategy "no" \\ 
  --save_strategy "steps" \\ 
  --save_steps 2400 \\ 
  --save_total_limit 5 \\ 
  --learning_rate 2e-5 \\ 
  --weight_decay 0. \\ 
  --warmup_ratio 0.03 \\ 
  --lr_scheduler_type "cosine" \\ 
  --logging_steps 1 \\ 
  --model_max_length 512 \\ 
  --gradient_checkpointing True #>> lora.log 2>&1 &
"""  # noqa: W291
SEED_004_ONE = """
deepspeed fastchat/train/train_lora.py \\
    --deepspeed ./deepspeed-config.json \\
    --lora_r 8 \\
    --lora_alpha 16 \\
    --lora_dropout 0.05 \\
    --model_name_or_path ./pyllama_data/output/7B \\
    --data_path ./data/sharegpt_clean_split.json \\
    --fp16 True \\
    --output_dir ./output \\
    --num_train_epochs 1 \\
    --per_device_train_batch_size 56 \\
    --per_device_eval_batch_size 56 \\
    --gradient_accumulation_steps 1\\
    --evaluation_strategy "no" \\
    --save_strategy "steps" \\
    --save_steps 1200 \\
    --save_total_limit 5 \\
    --learning_rate 2e-5 \\
    --weight_decay 0. \\
    --warmup_ratio 0.03 \\
    --lr_scheduler_type "cosine" \\
    --logging_steps 1 \\
    --model_max_length 1024 \\
    --gradient_checkpointing True
"""
# FastChat's page on training, the recipe that the QLoRA of the Antrea document is made from.
QLORA = """
deepspeed fastchat/train/train_lora.py --model_name_or_path ~/model_weights/llama-7b --lora_r 8 --lora_alpha 16
    --lora_dropout 0.05 --data_path ./data/dummy_conversation.json --bf16 True --output_dir ./checkpoints
    --num_train_epochs 3 --per_device_train_batch_size 1 --per_device_eval_batch_size 1
    --gradient_accumulation_steps 1 --evaluation_strategy "no" --save_strategy "steps" --save_steps 1200
    --save_total_limit 100 --learning_rate 2e-5 --weight_decay 0. --warmup_ratio 0.03
    --lr_scheduler_type "cosine" --logging_steps 1 --tf32 True --model_max_length 2048 --q_lora True
    --deepspeed playground/deepspeed_config_s2.json
"""
SHORT = "torchrun --nproc_per_node=2 train.py --model_name_or_path m --data_path d.json"


def seed_001(model: str = "../llama-7b-hf", report: str = "") -> list[str]:
    text = SEED_001.format(model=model, output=MODELS_001[model], report=report)
    return [word for word in shlex.split(text) if word != "\n"]


def seed_002() -> list[str]:
    return shlex.split(SEED_002.format(model="llama-7b", data="chats.json").replace("\\\n", " "))


def config_of(line: Line) -> TrainConfig:
    return override(TrainConfig(), [(key, value) for key, value, _ in line.settings])[0]


def values_of(config: TrainConfig, *keys: str) -> list[Any]:
    return [getattr(getattr(config, section), leaf) for section, leaf in (key.split(".") for key in keys)]


def refusals(words: Sequence[str]) -> list[str]:
    with pytest.raises(UsageError) as caught:
        translate(words)
    return caught.value.message.split("\n  ")[1:]


def asked(*argv: str) -> Asked:
    """The options of `vlaunch train ARGV`, a line in them taken over."""
    command = root.get_command(click.Context(root), "train")
    assert command is not None
    context = command.make_context("train", list(argv), parent=click.Context(root))
    with context.scope():
        return asked_for(context, {field.name: context.params[field.name] for field in fields(Asked)})


def request_of(*argv: str) -> TrainRequest:
    return make_request(asked(*argv))[0]


def printed_line(err: str) -> list[str]:
    """The vlaunch command of the conversation, as a shell would read it."""
    _, _, below = err.partition("the same in vlaunch's own words:\n")
    words = itertools.takewhile(lambda line: line.startswith("  "), below.splitlines())
    return shlex.split("\n".join(words).replace("\\\n", " "))


@pytest.fixture
def deepspeed_file() -> None:
    """The files that the documents' lines name, in the working directory; fp16 is theirs to take out."""
    auto = SIXTEEN_GB | {"fp16": {"enabled": "auto"}}
    Path("deepspeed-config.json").write_text(json.dumps(auto))
    Path("playground").mkdir()
    Path("playground/deepspeed_config_s2.json").write_text(json.dumps(FASTCHAT_S2))


@pytest.mark.parametrize("model", MODELS_001)
def test_the_lines_of_the_second_document_are_vicunas_recipe_on_two_gpus(model: str) -> None:
    line = translate(seed_001(model))

    assert (line.method, line.model, line.data) == ("full", model, ("playground/data/dummy.json",))
    assert (line.processes, line.nodes, line.rows, line.deepspeed) == (2, 1, 8, None)
    assert line.name == MODELS_001[model].replace(".", "-")
    config = config_of(line)
    assert config.train.model_dump() == TrainConfig().train.model_dump() | {
        "num_train_epochs": 2.0,
        "per_device_train_batch_size": 1,
        "eval_strategy": "no",
    }
    assert values_of(
        config,
        "data.max_length",
        "data.packing",
        "checkpoint.save_strategy",
        "checkpoint.save_steps",
        "checkpoint.save_total_limit",
        "parallel.strategy",
        "parallel.offload",
    ) == [2048, False, "steps", 300, 10, "fsdp", "none"]
    request = request_of("--", *seed_001(model))
    assert values_of(request.config, "train.global_batch_size", "parallel.processes") == [16, 2]


def test_what_a_line_has_that_this_version_lacks_is_refused_by_its_flag_alone() -> None:
    (problem,) = refusals(seed_001(report='--report_to "comet_ml"'))

    assert problem.startswith("--report_to comet_ml: known are wandb, tensorboard and none")


def test_where_a_line_reports_to_is_taken_over() -> None:
    tensorboard = translate(seed_001(report=REPORT))
    assert any("vlaunch metrics RUN --tensorboard DIR" in note for note in tensorboard.notes)
    wandb = config_of(translate(seed_001(report="--report_to wandb")))
    assert values_of(wandb, "tracking.report_to") == ["wandb"]


def test_the_line_of_the_third_document_asks_for_real_paths_and_is_then_translated() -> None:
    text = SEED_002.format(model="'<path-to-llama-model-weight>'", data="'<path-to-data>'")
    assert [problem.split()[0] for problem in refusals(shlex.split(text.replace("\\\n", " ")))] == [
        "--model_name_or_path",
        "--data_path",
    ]

    line = translate(seed_002())
    assert (line.method, line.processes, line.nodes, line.rows, line.name) == ("full", 1, 1, 4, "checkpoints")
    assert values_of(config_of(line), "train.num_train_epochs", "checkpoint.save_steps") == [3.0, 1200]
    assert request_of("--", *seed_002()).config.train.global_batch_size == 4


@pytest.mark.parametrize(
    ("text", "processes", "rows", "length"), [(SEED_004_TWO, 2, 14, 512), (SEED_004_ONE, None, 56, 1024)]
)
@pytest.mark.usefixtures("deepspeed_file")
def test_the_lines_of_the_16_gb_document_are_lora_with_deepspeed_once_fp16_is_gone(
    text: str, processes: int | None, rows: int, length: int
) -> None:
    (problem,) = refusals([text])
    assert problem == "--fp16 True: vlaunch trains in bf16, or in float32 without it: write --bf16 True"

    line = translate([text.replace("--fp16", "--bf16")])
    assert (line.method, line.deepspeed, line.name) == ("lora", "./deepspeed-config.json", "output")
    assert (line.processes, line.rows) == (processes, rows)
    keys = (
        "lora.r",
        "lora.alpha",
        "lora.dropout",
        "lora.target_modules",
        "lora.load_8bit",
        "data.max_length",
    )
    assert values_of(config_of(line), *keys) == [8, 16, 0.05, ("q_proj", "v_proj"), False, length]
    assert any("--load-8bit" in note for note in line.notes)

    # Pasted unchanged, with vlaunch's own word on what is refused.
    config = request_of("--set", "train.bf16=true", "--load-8bit", "--", text).config
    assert values_of(config, "train.bf16", "lora.load_8bit") == [True, True]
    assert values_of(config, "parallel.strategy", "parallel.zero_stage", "parallel.offload") == [
        "deepspeed",
        2,
        "optimizer",
    ]


@pytest.mark.usefixtures("deepspeed_file")
def test_fastchats_qlora_line_is_qlora_with_zero_2() -> None:
    config = request_of("--infra", "gcp", "--", QLORA).config

    assert values_of(config, "train.method", "parallel.strategy", "parallel.zero_stage") == [
        "qlora",
        "deepspeed",
        2,
    ]
    assert config.parallel.deepspeed["zero_optimization"]["overlap_comm"] is True
    assert config.lora.load_8bit is False


@pytest.mark.parametrize(
    "words",
    [
        ["--", *seed_001()],
        ["--infra", "aws", "--spot", "--", *seed_002()],
        ["--size", "tiny", "--max-steps", "5", "--data", "my chats.jsonl", "--", *seed_001()],
        ["--set", "bf16=true", "--", SEED_004_TWO],
        ["--infra", "aws/us-east-1", "--gpus", "A100:4", "--set", "train.bf16=true", "--", SEED_004_ONE],
        ["--infra", "gcp", "--num-nodes", "2", "--", QLORA],
    ],
    ids=["second", "third", "tiny", "fourth-two", "fourth-one", "qlora"],
)
@pytest.mark.usefixtures("deepspeed_file")
def test_the_printed_line_asks_for_the_same(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    request = request_of(*words)
    program, verb, *own = printed_line(capsys.readouterr().err)

    assert (program, verb) == ("vlaunch", "train")
    again = request_of(*own)
    assert again == replace(request, name=again.name)
    assert "--name" not in own or again.name == request.name


def test_a_dry_run_of_a_line_prints_a_task(vlaunch: Vlaunch) -> None:
    done = vlaunch("train", "--infra", "aws", "--spot", "--dry-run", "--", *seed_001())

    task = yaml.safe_load(done.out)
    assert done.code == 0
    assert task["name"].startswith("base-llama-7b-hf-dummy-")
    # The line asks for two; AWS lends this card by eight.
    assert {place["accelerators"] for place in task["resources"]["ordered"]} == {"A100-80GB:8"}
    again = vlaunch(*printed_line(done.err)[1:], "--dry-run")
    assert again.out == done.out
    assert "own words" not in again.err


def test_a_plan_of_a_line_is_the_plan_of_its_request(vlaunch: Vlaunch) -> None:
    plan = vlaunch("plan", "--data", write_data(), "--json", "--", *seed_002()).json

    assert (plan["name"], plan["method"], plan["recipe"]) == ("checkpoints", "full", "llama-7b-full")


def write_data() -> Path:
    path = Path("chats.jsonl")
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    path.write_text(json.dumps({"conversations": turns}) + "\n")
    return path


def test_vlaunchs_own_options_win_over_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    request = request_of(
        "--name", "mine", "--epochs", "1", "--data", "own.jsonl", "--set", "lr_scheduler_type=linear",
        "--set", "global_batch_size=64", "--", *seed_001(), "--max_steps", "9",
    )  # fmt: skip

    keys = ("train.num_train_epochs", "train.max_steps", "train.lr_scheduler_type", "train.global_batch_size")
    assert values_of(request.config, *keys) == [1.0, -1, "linear", 64]
    err = capsys.readouterr().err
    assert request.name == "mine" and "--data own.jsonl" in err
    for flag in ("--num_train_epochs", "--max_steps", "--lr_scheduler_type", "--data_path", "--output_dir"):
        assert f"{flag} gives way to vlaunch's own" in err


@pytest.mark.usefixtures("deepspeed_file")
def test_the_strategy_that_vlaunch_is_told_wins() -> None:
    line = [*shlex.split(SHORT), "--deepspeed", "deepspeed-config.json"]
    offloaded = [*shlex.split(SHORT), "--fsdp", "full_shard auto_wrap offload"]
    keys = ("parallel.strategy", "parallel.offload")

    assert values_of(request_of("--", *line).config, *keys) == ["deepspeed", "optimizer"]
    assert values_of(request_of("--strategy", "fsdp", "--", *line).config, *keys) == ["fsdp", "none"]
    assert values_of(request_of("--", *offloaded).config, *keys) == ["fsdp", "all"]
    assert values_of(request_of("--strategy", "deepspeed", "--", *offloaded).config, *keys) == [
        "deepspeed",
        "none",
    ]


@pytest.mark.usefixtures("deepspeed_file")
def test_a_file_of_the_line_is_worth_more_than_what_the_line_leaves_out() -> None:
    Path("ds.json").write_text(json.dumps({"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}))
    line = [*shlex.split(SHORT), "--deepspeed", "ds.json"]

    assert request_of("--", *line).config.train.bf16 is True
    with pytest.raises(UsageError, match="bf16.enabled is true, train.bf16 is false"):
        request_of("--", *line, "--bf16", "False")


def test_a_line_for_every_gpu_counts_those_of_the_machine() -> None:
    line = translate(shlex.split("deepspeed train.py --model_name_or_path m --gradient_accumulation_steps 4"))
    here, there = asked(), asked("--infra", "aws")

    def batch(merged: Asked) -> list[str]:
        return [field.value for field in merged.set_fields if field.key == "train.global_batch_size"]

    assert batch(merge(here, line, (), lambda: 3)[0]) == ["96"]
    assert batch(merge(here, line, (), lambda: 0)[0]) == ["32"]
    assert batch(merge(there, line, (), lambda: 0)[0]) == []  # 128, as the recipe for its four A100 has it
    assert merge(here, line, (), lambda: 3)[0].gpus is None


@pytest.mark.parametrize(
    "words",
    [
        "python -m torch.distributed.run --nproc-per-node 2 train.py",
        "/opt/conda/bin/python3.10 -m torch.distributed.launch --use_env --nproc_per_node=2 --node_rank 0 train.py",
        "torchrun --standalone --nproc_per_node 2 --rdzv_backend=c10d -m fastchat.train.train",
        "/usr/local/bin/torchrun --nnodes 1 --nproc_per_node=2 -- train.py",
        "deepspeed --num_gpus=2 --master_port 29501 train.py",
        "python -m deepspeed.launcher.runner --num_gpus 2 fastchat/train/train.py",
        "nohup torchrun --nproc_per_node=2 train.py",
    ],
)
def test_launchers_are_known_in_every_form(words: str) -> None:
    line = translate([word for word in words.split() if word != "--"] + ["--model_name_or_path", "m"])

    assert (line.processes, line.model, line.method) == (2, "m", "full")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["vlaunch", "train"], "'vlaunch' starts no training"),
        (["accelerate", "launch", "train.py"], "'accelerate' starts no training"),
        (["--model_name_or_path", "m"], "'--model_name_or_path' starts no training"),
        ([" ", "\\\n"], "there is no line"),
        (["torchrun", "--nproc_per_node=2"], "names no script"),
        (["torchrun 'train.py"], "cannot be read"),
    ],
)
def test_what_is_no_line_is_refused(words: list[str], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        translate(words)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--fp16 True", "--fp16 True: vlaunch trains in bf16"),
        ("--fsdp shard_grad_op", '--fsdp "shard_grad_op"'),
        ("--fsdp full_shard --deepspeed ds.json", "--fsdp and --deepspeed"),
        ("--save_strategy epoch", "--save_strategy epoch: write steps"),
        ("--evaluation_strategy epoch", "--evaluation_strategy epoch: write steps"),
        ("--save_steps 0.1", "--save_steps 0.1: it takes a whole number"),
        ("--learning_rate fast", "--learning_rate fast: it takes a number"),
        ("--learning_rate", "--learning_rate: it takes a number"),
        ("--warmup_ratio 1.5", "--warmup_ratio 1.5: train.warmup_ratio"),
        ("--warmup_steps 100", "--warmup_steps 100: write --warmup_ratio"),
        ("--warmup_steps 9 --max_steps 9", "--warmup_steps 9: there are 9 steps"),
        ("--optim paged_adamw_32bit", "--optim paged_adamw_32bit: optimisers are"),
        ("--lr_scheduler_type polynomial", "--lr_scheduler_type polynomial: schedules are"),
        ("--load_best_model_at_end True", "--load_best_model_at_end True: the best is by the held-out loss"),
        ("--lora_r 8", "--lora_r 8: train.py trains all weights"),
        ("--bf16 maybe", "--bf16 maybe: it takes True or False"),
        ("--bf16 True surprise", "--bf16 True surprise: it takes True or False"),
        ("--data_seed 7", "--data_seed 7: one --seed"),
        ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps 0"),
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size 0"),
        ("--save_steps 0", "--save_steps 0: checkpoint.save_steps"),
        ("--eval_strategy steps --eval_steps 0", "--eval_steps 0: train.eval_steps"),
        ("--model_name_or_path <path>", "--model_name_or_path <path>: write what it is"),
        ("--resume_from_checkpoint out/checkpoint-9", "the same --name goes on"),
        ("--lerning_rate 1", "did you mean --learning_rate?"),
    ],
)
def test_a_flag_that_cannot_be_honoured_is_refused_by_name(more: str, said: str) -> None:
    problems = refusals([*shlex.split(SHORT), *shlex.split(more)])

    assert len(problems) == 1 and said in problems[0]


def test_everything_that_cannot_be_honoured_is_told_at_once() -> None:
    line = "CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node=x --nnodes 1:4 my/train_baichuan.py"
    problems = refusals([*line.split(), "--fp16", "True", "--no_such", "1"])

    named = [
        "CUDA_VISIBLE_DEVICES=0,1",
        "--nnodes",
        "my/train_baichuan.py",
        "--fp16",
        "--no_such",
        "--nproc_per_node",
    ]
    assert [word for word in named if not any(problem.startswith(word) for problem in problems)] == []
    assert any(problem.startswith("--model_name_or_path: it is missing") for problem in problems)
    assert len(problems) == len(named) + 1


@settings(deadline=None, max_examples=100)
@given(st.lists(st.one_of(st.text(max_size=6), st.sampled_from([f"--{name}" for name in FLAGS])), max_size=8))
def test_whatever_the_words_are_there_is_a_line_or_one_error(words: list[str]) -> None:
    try:
        translate(["torchrun", "train.py", *words])
    except UsageError as error:
        assert error.message and error.hint


WORDS = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)


@settings(deadline=None, max_examples=60)
@given(WORDS.filter(lambda name: name not in FLAGS), st.lists(WORDS, max_size=2), st.booleans(), st.data())
def test_an_unknown_flag_is_refused_by_name_wherever_it_stands(
    name: str, values: list[str], dashes: bool, data: st.DataObject
) -> None:
    words = seed_001()
    flags = [index for index, word in enumerate(words) if index > 2 and word.startswith("--")]
    place = data.draw(st.sampled_from([*flags, len(words)]))
    written = name.replace("_", "-") if dashes else name

    (problem,) = refusals([*words[:place], f"--{written}", *values, *words[place:]])

    assert problem.startswith(" ".join([f"--{name}", *values]) + ": vlaunch has nothing for it")


@settings(deadline=None, max_examples=40)
@given(st.randoms(use_true_random=False))
def test_the_order_of_flags_does_not_matter(random: Any) -> None:
    words = seed_001()
    head, tail = words[:4], words[4:]
    starts = [index for index, word in enumerate(tail) if word.startswith("--")]
    groups = [tail[start:end] for start, end in zip(starts, [*starts[1:], len(tail)], strict=True)]
    random.shuffle(groups)

    line = translate([*head, *(word for group in groups for word in group)])

    assert config_of(line) == config_of(translate(words))
    assert sorted(line.notes) == sorted(translate(words).notes)


@pytest.mark.parametrize("value", ["surprise", "7", "True", ""])
@pytest.mark.parametrize("script", ["train.py", "train_lora.py"])
def test_no_flag_is_silently_dropped(script: str, value: str) -> None:
    """Each changes the request, is told of, is refused, or says what vlaunch does in any case."""
    base = f"torchrun --nproc_per_node=2 {script} --model_name_or_path m --data_path d".split()
    plain, silent = repr(translate(base)), set()
    for name in FLAGS:
        try:
            if repr(translate([*base, f"--{name}", value])) == plain:
                silent.add(name)
        except UsageError as error:
            assert f"--{name}" in error.message
    always = {
        "surprise": set(),
        "7": set(),
        "True": {"average_tokens_across_devices", "fsdp", "resume_from_checkpoint", "save_safetensors"},
        "": {"fsdp", "lora_weight_path"},
    }[value]
    assert silent == always


def test_what_a_line_leaves_out_is_as_transformers_has_it() -> None:
    from transformers import TrainingArguments

    theirs = {field.name: field.default for field in fields(TrainingArguments)}
    line = translate(shlex.split(SHORT))
    config = config_of(line).model_dump()

    compared = set(config["train"]) & set(theirs) - {
        "tf32",
        "torch_compile",
        "use_liger_kernel",
        "eval_steps",
    }
    assert {name: config["train"][name] for name in compared} == {name: theirs[name] for name in compared}
    assert len(compared) > 12
    assert (
        config["train"]["tf32"] is False and config["train"]["warmup_ratio"] == 0.0 == theirs["warmup_steps"]
    )
    assert config["data"]["max_length"] == 512  # FastChat's own
    assert line.rows == theirs["per_device_train_batch_size"] * theirs["gradient_accumulation_steps"]
    assert any("--learning_rate 5e-05" in note for note in line.notes)


@pytest.mark.parametrize("steps", [1, 3, 30, 333])
def test_warm_up_given_in_steps_takes_that_many_steps(steps: int) -> None:
    import math

    words = [*shlex.split(SHORT), "--max_steps", "1000", "--warmup_steps", str(steps)]

    assert math.ceil(1000 * config_of(translate(words)).train.warmup_ratio) == steps


def test_a_constant_rate_has_warm_up_only_where_transformers_gives_it_one() -> None:
    words = [*shlex.split(SHORT), "--warmup_ratio", "0.1", "--lr_scheduler_type"]
    keys = ("train.lr_scheduler_type", "train.warmup_ratio")

    assert values_of(config_of(translate([*words, "constant"])), *keys) == ["constant", 0.0]
    assert values_of(config_of(translate([*words, "constant_with_warmup"])), *keys) == ["constant", 0.1]


def test_held_out_losses_are_measured_when_the_line_says() -> None:
    words = [*shlex.split(SHORT), "--eval_data_path", "e.json", "--eval_strategy", "steps"]
    keys = ("train.eval_strategy", "train.eval_steps")

    assert values_of(config_of(translate([*words, "--eval_steps", "50"])), *keys) == ["steps", 50]
    assert values_of(config_of(translate([*words, "--logging_steps", "20"])), *keys) == ["steps", 20]
    assert translate(words).eval_data == ("e.json",)


def test_other_flags_of_the_trainer_are_fields_here() -> None:
    line = """torchrun train_lora.py --model-name-or-path=m --lora_target_modules q_proj k_proj --load_in_8bit
        --optim adamw_bnb_8bit --max_grad_norm 0.5 --adam_beta2 0.95 --adam_epsilon=1e-6 --seed 7 --data_seed 7
        --torch_compile --use_liger_kernel False --auto_find_batch_size True --load_best_model_at_end True
        --eval_strategy steps --run_name "My Run" --gradient_checkpointing --bf16 --bf16 False"""
    found = translate([line])

    keys = "lora.target_modules lora.load_8bit train.optim train.max_grad_norm train.adam_beta2 train.adam_epsilon "
    keys += "train.seed train.torch_compile train.use_liger_kernel train.auto_batch checkpoint.keep_best "
    keys += "train.gradient_checkpointing train.bf16"
    assert values_of(config_of(found), *keys.split()) == [
        ("q_proj", "k_proj"), True, "adamw_bnb_8bit", 0.5, 0.95, 1e-6, 7, True, False, True, True, True, False,
    ]  # fmt: skip
    assert found.name == "my-run"


def test_words_that_broken_lines_leave_behind_mean_nothing() -> None:
    clean = seed_001()
    broken = [part for word in clean for part in (word, " ", "\\\n", "\n")]

    assert translate(broken) == translate(clean)
    assert translate([f"{word}\\" for word in clean]) == translate(clean)
    assert translate([" ".join(map(shlex.quote, clean))]) == translate(clean)


def test_words_before_the_dashes_are_options_as_ever(vlaunch: Vlaunch) -> None:
    for given_, word in (
        (["--nproc_per_node=2", "--", *seed_001()], "no option --nproc_per_node"),
        (["--sise", "tiny", "--", *seed_001()], "did you mean --size?"),
        (["tiny"], "'tiny' starts no training that vlaunch knows"),
        (["--spot", *seed_001()], "comes after --: vlaunch train -- torchrun ..."),
        (["--strategy", "deepspeed", "--sise", "7"], "did you mean --size?"),
    ):
        ran = vlaunch("train", *given_)
        assert ran.code == 2 and word in ran.err and ran.out == ""
