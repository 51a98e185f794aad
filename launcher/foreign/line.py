"""The torchrun and deepspeed lines of FastChat's documents, in vlaunch's words.

`vlaunch train -- torchrun --nproc_per_node=2 fastchat/train/train_mem.py --model_name_or_path ...` is read here:
words become fields of the configuration and facts about the machine. Every flag is honoured, or harmless and
told, or refused by name; all refusals are told together. What the line leaves out is as the scripts have it, not
as a recipe of ours. Pure; takeover.py makes a request of it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from launcher.errors import ConfigError, UsageError, nearest
from launcher.foreign.flags import (
    DEEPSPEED,
    FLAGS,
    FULL_SCRIPTS,
    LORA_SCRIPTS,
    SWITCHES,
    TORCHRUN,
    Draft,
    Rule,
    Setting,
    shown,
)
from trainer.config import TrainConfig, override

# TrainingArguments of transformers 5.17, where FastChat's scripts have no default of their own (optimiser, 512
# tokens, LoRA). Rows: FastChat pads one conversation each.
_DEFAULTS = {
    "data.max_length": "512",
    "data.packing": "false",
    "train.num_train_epochs": "3.0",
    "train.max_steps": "-1",
    "train.per_device_train_batch_size": "8",
    "train.learning_rate": "5e-05",
    "train.lr_scheduler_type": "linear",
    "train.warmup_ratio": "0.0",
    "train.weight_decay": "0.0",
    "train.adam_beta1": "0.9",
    "train.adam_beta2": "0.999",
    "train.adam_epsilon": "1e-08",
    "train.max_grad_norm": "1.0",
    "train.gradient_checkpointing": "false",
    "train.bf16": "false",
    "train.tf32": "false",
    "train.optim": "adamw_torch_fused",
    "train.seed": "42",
    "train.eval_strategy": "no",
}
_LORA_DEFAULTS = {
    "lora.r": "8",
    "lora.alpha": "16",
    "lora.dropout": "0.05",
    "lora.target_modules": '["q_proj", "v_proj"]',
    "lora.load_8bit": "false",
}
# Those that people rarely know, by the name of their flag.
_WORTH_TELLING = {
    "learning_rate": "5e-05",
    "lr_scheduler_type": "linear",
    "per_device_train_batch_size": "8",
    "model_max_length": "512",
}
_LONGEST_NAME = 40  # of a run; launcher/submit.py refuses others
_START = "options come first; after -- a line that starts with torchrun, deepspeed or python"


@dataclass(frozen=True, slots=True)
class Line:
    """What a line asks for. Fields that it does not mention are None or empty."""

    settings: tuple[Setting, ...]
    method: str
    model: str | None
    data: tuple[str, ...]
    eval_data: tuple[str, ...]
    deepspeed: str | None
    """The file of --deepspeed; without one the model is sharded by fsdp."""
    rows: int
    """Conversations per optimiser step and process: --per_device_train_batch_size times accumulation."""
    processes: int | None
    """Per machine; None is one per GPU."""
    nodes: int
    name: str | None
    notes: tuple[str, ...]


def translate(words: Sequence[str], said: Collection[str] = ()) -> Line:
    """Understand a line, given word by word or as one text.

    `said`: options (by their names in Asked) and fields that vlaunch was told itself: they win, so a flag that
    says something impossible about one of them does not matter.

    Raises:
        UsageError: all that cannot be done as the line says it, each by its flag and with what to write.
    """
    draft = Draft(said)
    rules, launcher, rest = _program(draft, _cleaned(words))
    script = _read_launcher(draft, rules, rest)
    draft.script, draft.method = _script(draft, script)
    flags = _flags(draft, rest, FLAGS)
    for flag, (rule, values) in flags.items():
        rule(draft, flag, values)
    if "--model_name_or_path" not in flags:
        draft.refuse("--model_name_or_path: it is missing", "model", "size")
    line = _decide(draft, launcher)
    if draft.problems:
        raise UsageError(
            "\n  ".join(["the line asks for what vlaunch does not do as it is said:", *draft.problems]),
            hint="change or take out each of them, or say it to vlaunch, before the --: --set FIELD=VALUE wins",
        )
    return line


def _cleaned(words: Sequence[str]) -> list[str]:
    """Words without what the shell leaves of broken lines: backslashes, and spaces behind them."""
    if len(words) == 1 and re.search(r"\s", words[0].strip()):
        lines = [re.sub(r"\\\s*$", "", line) for line in words[0].splitlines()]
        try:
            words = [word for line in lines for word in shlex.split(line, comments=True)]
        except ValueError as error:
            raise UsageError(f"the line cannot be read: {error}", hint="quotes come in pairs") from None
    stripped = (re.sub(r"^\\?\s+|\s*\\?\s*$", "", word) if word else word for word in words)
    return [word for word, was in zip(stripped, words, strict=True) if word or not was]


def _program(draft: Draft, words: list[str]) -> tuple[Mapping[str, Rule], str, list[str]]:
    """The rules of the launcher's flags, its name, and the words after it; "python" is one process."""
    while words and (match := re.match(r"(\w+)=", words[0])):
        draft.refuse(f"{words[0]}: write it in front of vlaunch: {match[1]}=... vlaunch train ...")
        words = words[1:]
    if words[:1] == ["nohup"]:
        draft.note("nohup: --detach lets a run go on without its terminal, and vlaunch status finds it again")
        words = words[1:]
    if not words:
        raise UsageError("there is no line after --", hint=_START)
    program = PurePath(words[0]).name
    if re.fullmatch(r"python[\d.]*", program):
        if words[1:2] != ["-m"]:
            return {}, "python", words[1:]
        if words[2:3] in (["torch.distributed.run"], ["torch.distributed.launch"]):
            return TORCHRUN, "torchrun", words[3:]
        if words[2:3] in (["deepspeed"], ["deepspeed.launcher.runner"]):
            return DEEPSPEED, "deepspeed", words[3:]
        return {}, "python", words[1:]
    if program in ("torchrun", "deepspeed"):
        return TORCHRUN if program == "torchrun" else DEEPSPEED, program, words[1:]
    raise UsageError(f"{words[0]!r} starts no training that vlaunch knows", hint=_START)


def _read_launcher(draft: Draft, rules: Mapping[str, Rule], rest: list[str]) -> str:
    """Take the launcher's own flags and the script off the front of `rest`; the script."""
    found: dict[str, tuple[Rule, list[str]]] = {}
    module = False
    while rest and rest[0].startswith("-"):
        flag, name, values = _split(rest.pop(0))
        if name in ("m", "module"):
            module = True
            continue
        takes_one = name not in SWITCHES and not values and rest and not rest[0].startswith("-")
        if takes_one and (name in rules or not re.search(r"\.py$|^fastchat|/", rest[0])):
            values = [rest.pop(0)]
        _find(draft, found, rules, flag, name, values)
    for flag, (rule, values) in found.items():
        rule(draft, flag, values)
    if not rest:
        raise UsageError("the line names no script", hint=f"vlaunch knows {_scripts()} of FastChat")
    script = rest.pop(0)
    return script.replace(".", "/") if module else script


def _script(draft: Draft, path: str) -> tuple[str, str]:
    """The script's name, and the method that it stands for."""
    stem = PurePath(path).name.removesuffix(".py")
    if stem not in (*FULL_SCRIPTS, *LORA_SCRIPTS):
        draft.refuse(f"{path}: vlaunch knows {_scripts()} of FastChat; give vlaunch train options instead")
    elif stem in FULL_SCRIPTS[1:]:
        draft.note(f"{stem}.py: the fastest attention that the card can also run backward is taken")
    return f"{stem}.py", "lora" if stem in LORA_SCRIPTS else "full"


def _scripts() -> str:
    return ", ".join(f"{stem}.py" for stem in (*FULL_SCRIPTS, *LORA_SCRIPTS))


def _flags(
    draft: Draft, words: Sequence[str], rules: Mapping[str, Rule]
) -> dict[str, tuple[Rule, list[str]]]:
    """The flags with their values; of a repeated one the last, as argparse does it."""
    found: dict[str, tuple[Rule, list[str]]] = {}
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if not _is_flag(word):
            draft.refuse(f"{word!r}: it belongs to no flag")
            continue
        flag, name, values = _split(word)
        while "=" not in word and index < len(words) and not _is_flag(words[index]):
            values.append(words[index])
            index += 1
        _find(draft, found, rules, flag, name, values)
    return found


def _is_flag(word: str) -> bool:
    return word.startswith("-") and not re.fullmatch(r"-\.?\d.*", word)


def _split(word: str) -> tuple[str, str, list[str]]:
    """(flag as FastChat spells it, its name, the value behind an equals sign)."""
    text, equals, value = word.partition("=")
    name = text.lstrip("-").replace("-", "_")
    return f"{'-' * (len(text) - len(name))}{name}", name, [value] if equals else []


def _find(
    draft: Draft,
    found: dict[str, tuple[Rule, list[str]]],
    rules: Mapping[str, Rule],
    flag: str,
    name: str,
    values: list[str],
) -> None:
    if name in rules:
        found.pop(flag, None)
        found[flag] = (rules[name], values)
        return
    close = nearest(name, rules)
    hint = f"did you mean --{close}?" if close else "take it out"
    draft.refuse(f"{shown(flag, values)}: vlaunch has nothing for it; {hint}")


def _decide(draft: Draft, launcher: str) -> Line:
    """What several flags say together, and what none of them says."""
    values = draft.values
    _schedule(draft)
    _measuring(draft)
    _saving(draft)
    rows = _rows(draft)
    _check(draft)
    if "fsdp" in values and "deepspeed" in values:
        draft.refuse("--fsdp and --deepspeed: the model is sharded by one of them", "strategy", "deepspeed")
    seed = draft.settings.get("train.seed", Setting("", "42", "")).value
    if values.get("data_seed", seed) != seed:
        draft.refuse(f"--data_seed {values['data_seed']}: one --seed draws everything", "train.seed")
    if draft.method == "qlora" and draft.settings.get("lora.load_8bit", Setting("", "", "")).value == "true":
        draft.refuse("--load_in_8bit True: with --q_lora True the base is in 4 bit", "method")
    if draft.method == "lora" and "lora.load_8bit" not in draft.settings:
        draft.note(f"{draft.script}: the base stays in 16 bit; --load-8bit before the -- fits a 16 GB card")
    _fill(draft)
    return Line(
        settings=tuple(draft.settings.values()),
        method=draft.method,
        model=values.get("model_name_or_path"),
        data=tuple(values[name] for name in ("data_path",) if name in values),
        eval_data=tuple(values[name] for name in ("eval_data_path",) if name in values),
        deepspeed=values.get("deepspeed"),
        rows=rows,
        processes=_processes(draft, launcher),
        nodes=_nodes(draft),
        name=_name(draft),
        notes=tuple(draft.notes),
    )


def _check(draft: Draft) -> None:
    """Values that no configuration can have are refused by their flag."""
    for key, value, flag in list(draft.settings.values()):
        try:
            override(TrainConfig(), [(key, value)])
        except ConfigError as error:
            draft.refuse(f"{flag} {value}: {error.message}", key)
            del draft.settings[key]


def _schedule(draft: Draft) -> None:
    kind, steps = draft.values.get("lr_scheduler_type"), draft.values.get("warmup_steps", "0")
    total = draft.settings.get("train.max_steps")
    if kind == "constant":  # without warm-up in transformers, which has constant_with_warmup besides
        if "train.warmup_ratio" in draft.settings:
            draft.note("--lr_scheduler_type constant: there is no warm-up, as transformers has it")
        draft.set("train.warmup_ratio", "0.0", "--lr_scheduler_type")
    elif steps != "0" and total is None:
        draft.refuse(
            f"--warmup_steps {steps}: write --warmup_ratio, or --max_steps as well", "train.warmup_ratio"
        )
    elif total is not None and int(steps) >= int(total.value):
        draft.refuse(f"--warmup_steps {steps}: there are {total.value} steps", "train.warmup_ratio")
    elif steps != "0" and total is not None:
        # Warm-up takes ceil(total * ratio) steps; half a step less keeps the rounding of floats out of it.
        draft.set("train.warmup_ratio", repr((int(steps) - 0.5) / int(total.value)), "--warmup_steps")


def _measuring(draft: Draft) -> None:
    flag = "eval_strategy" if "eval_strategy" in draft.values else "evaluation_strategy"
    strategy = draft.values.get(flag, "no")
    if strategy not in ("no", "steps"):
        draft.refuse(f"--{flag} {strategy}: write steps, and --eval_steps N", "train.eval_strategy")
    elif flag in draft.values:
        draft.set("train.eval_strategy", strategy, f"--{flag}")
    every = draft.values.get("eval_steps") or draft.values.get("logging_steps", "500")
    if strategy == "steps" and re.fullmatch(r"[0-9]{1,18}", every):
        draft.set("train.eval_steps", every, "--eval_steps")
    elif "eval_steps" in draft.values:
        draft.note("--eval_steps: the held-out loss is measured at the end only, as --eval_strategy no says")
    best = draft.settings.get("checkpoint.keep_best")
    if best is not None and best.value == "true" and strategy == "no":
        why = "the best is by the held-out loss: add --eval_strategy steps and --eval_data_path"
        draft.refuse(f"{best.flag} True: {why}", "checkpoint.keep_best", "train.eval_strategy")
    if "logging_steps" in draft.values:
        draft.note(
            f"--logging_steps {draft.values['logging_steps']}: every step is recorded: vlaunch metrics RUN"
        )
    if "eval_data_path" in draft.values:
        draft.note(
            "--eval_data_path: its first 256 conversations are measured; train.max_eval_samples is more"
        )


def _saving(draft: Draft) -> None:
    strategy, steps = draft.values.get("save_strategy"), draft.values.get("save_steps", "500")
    if strategy == "no":
        draft.note("--save_strategy no: checkpoints are made all the same: a machine may be taken away")
    elif strategy not in (None, "steps"):
        draft.refuse(
            f"--save_strategy {strategy}: write steps, and --save_steps N", "checkpoint.save_strategy"
        )
    elif strategy or "save_steps" in draft.values:
        draft.set("checkpoint.save_strategy", "steps", "--save_strategy")
        draft.set("checkpoint.save_steps", steps, "--save_steps")
        draft.note(
            f"--save_steps {steps}: so much work is lost with a machine; "
            "--set checkpoint.save_strategy=auto saves by the clock"
        )


def _rows(draft: Draft) -> int:
    """Conversations per step of one process."""
    names = ("per_gpu_train_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")
    per_device = draft.values.get(names[1]) or draft.values.get(names[0])
    if draft.values.get(names[2]) == "0":
        draft.refuse(f"--{names[2]} 0: it takes 1 or more", "train.global_batch_size")
    if per_device is not None:
        draft.set("train.per_device_train_batch_size", per_device, f"--{names[1]}")
    rows = int(per_device or _DEFAULTS["train.per_device_train_batch_size"])
    return rows * int(draft.values.get(names[2], "1"))


def _processes(draft: Draft, launcher: str) -> int | None:
    for name in ("nproc_per_node", "num_gpus", "num_accelerators"):
        text = draft.values.get(name)
        if text in ("gpu", "auto"):
            return None
        if text is not None and re.fullmatch(r"[1-9][0-9]{0,5}", text):
            return int(text)
        if text is not None:
            draft.refuse(f"--{name} {text}: it takes the number of GPUs", "parallel.processes")
    return None if launcher == "deepspeed" else 1


def _nodes(draft: Draft) -> int:
    return max(1, int(draft.values.get("nnodes") or draft.values.get("num_nodes") or "1"))


def _name(draft: Draft) -> str | None:
    """The run's name: --run_name, or the last part of --output_dir, as a name that a run can have."""
    where = draft.values.get("output_dir")
    text = draft.values.get("run_name") or (PurePath(where).name if where else "")
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_LONGEST_NAME].strip("-") or None
    if where:
        draft.note(
            f"--output_dir {where}: the model will be in export/ of the run{f' {name}' if name else ''}"
        )
    return name


def _fill(draft: Draft) -> None:
    """What the line leaves out."""
    draft.note(
        "a row is one conversation, as FastChat has it; --set data.packing=true fills rows with several"
    )
    defaults = _DEFAULTS | (_LORA_DEFAULTS if draft.method != "full" else {})
    told = {setting.flag.lstrip("-") for setting in draft.settings.values()}
    silent = [f"--{name} {value}" for name, value in _WORTH_TELLING.items() if name not in told]
    if silent:
        draft.note(f"not in the line, so as FastChat has it: {', '.join(silent)}")
    for key, value in defaults.items():
        draft.settings.setdefault(key, Setting(key, value, ""))
