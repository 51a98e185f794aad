"""What each flag of FastChat's training scripts means here: the rules that line.py reads a line by.

The flags are those of FastChat's train.py and train_lora.py, of transformers' TrainingArguments (5.17, and the
older names that documents have), of torchrun and of the deepspeed launcher. Each is honoured (it becomes a
field), harmless (a note says what happens instead) or refused with what to write; one without a rule is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Setting(NamedTuple):
    """A field of the configuration, and the flag that it came from: "" for a default of FastChat's."""

    key: str
    value: str
    flag: str


@dataclass
class Draft:
    """What has been understood so far. `said`: fields and options that vlaunch itself was told; they win."""

    said: Collection[str] = ()
    script: str = ""
    method: str = "full"
    settings: dict[str, Setting] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    """Texts that several flags together decide over, by flag."""
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def set(self, key: str, value: str, flag: str) -> None:
        self.settings[key] = Setting(key, value, flag)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def refuse(self, text: str, *cures: str) -> None:
        """`cures`: what vlaunch can be told itself, so that this part of the line does not matter."""
        cured = [cure for cure in cures if cure in self.said]
        if cured:
            self.note(f"{text.split(':')[0]} gives way to vlaunch's own {cured[0]}")
        else:
            self.problems.append(text)


Rule = Callable[[Draft, str, Sequence[str]], None]

_TRUTHS = {"true": True, "yes": True, "t": True, "y": True, "1": True}
_TRUTHS |= {"false": False, "no": False, "f": False, "n": False, "0": False}


def shown(flag: str, values: Sequence[str]) -> str:
    return " ".join([flag, *(value or '""' for value in values)])


def number(text: str) -> str | None:
    """A finite number as JSON, else None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return repr(value) if math.isfinite(value) else None


def whole(text: str) -> str | None:
    return str(int(text)) if re.fullmatch(r"[0-9]{1,18}", text) else None


def truth(text: str) -> str | None:
    found = _TRUTHS.get(text.lower())
    return None if found is None else json.dumps(found)


Kind = Callable[[str], str | None]
_KINDS: dict[Kind, str] = {number: "a number", whole: "a whole number", truth: "True or False"}


def read(draft: Draft, flag: str, values: Sequence[str], kind: Kind, *cures: str) -> str | None:
    """The one value of a flag; None where it has been refused. Without one a truth is True, as in argparse."""
    if not values and kind is truth:
        return "true"
    text = kind(values[0]) if len(values) == 1 else None
    if text is None:
        draft.refuse(f"{shown(flag, values)}: it takes {_KINDS[kind]}", *cures)
    return text


def _sets(key: str, kind: Kind) -> Rule:
    """The flag is a field."""

    def rule(draft: Draft, flag: str, values: Sequence[str]) -> None:
        value = read(draft, flag, values, kind, key)
        if value is not None:
            draft.set(key, value, flag)

    return rule


def _keeps(kind: Kind | None = None, *cures: str) -> Rule:
    """The flag is read later, together with others."""

    def rule(draft: Draft, flag: str, values: Sequence[str]) -> None:
        if kind is not None:
            value = read(draft, flag, values, kind, *cures)
        elif len(values) == 1 and values[0] and not re.fullmatch(r"<.*>", values[0]):
            value = values[0]
        else:
            draft.refuse(f"{shown(flag, values)}: write what it is", *cures)
            return
        if value is not None:
            draft.values[flag.lstrip("-")] = value

    return rule


def _told(note: str) -> Rule:
    """Harmless: what happens instead is said."""
    return lambda draft, flag, values: draft.note(f"{shown(flag, values)}: {note}")


def _only(allowed: str, why: str, *cures: str) -> Rule:
    """What vlaunch does anyway; any other value is refused. `allowed`: words; "-" is an empty value."""
    words = {"" if word == "-" else word for word in allowed.split()}

    def rule(draft: Draft, flag: str, values: Sequence[str]) -> None:
        text = " ".join(values).lower() if values else "true"
        if text not in words:
            draft.refuse(f"{shown(flag, values)}: {why}", *cures)

    return rule


def _refused(why: str, *cures: str) -> Rule:
    return lambda draft, flag, values: draft.refuse(f"{shown(flag, values)}: {why}", *cures)


def _one_of(key: str, meanings: dict[str, str], why: str) -> Rule:
    """A word for a word; where they differ, the flag is kept as well."""

    def rule(draft: Draft, flag: str, values: Sequence[str]) -> None:
        text = " ".join(values)
        if text in meanings:
            draft.set(key, meanings[text], flag)
            draft.values[flag.lstrip("-")] = text
        else:
            draft.refuse(f"{shown(flag, values)}: {why}", key)

    return rule


def _report_to(draft: Draft, flag: str, values: Sequence[str]) -> None:
    if values == ["tensorboard"]:
        draft.note(
            f"{shown(flag, values)}: vlaunch metrics RUN --tensorboard DIR writes its files at any time"
        )
    else:
        _one_of("tracking.report_to", _REPORTS, "known are wandb, tensorboard and none")(draft, flag, values)


def _lora_only(rule: Rule) -> Rule:
    """A flag of train_lora.py alone."""

    def checked(draft: Draft, flag: str, values: Sequence[str]) -> None:
        if draft.method == "full":
            draft.refuse(f"{shown(flag, values)}: {draft.script} trains all weights; train_lora.py has it")
        else:
            rule(draft, flag, values)

    return checked


def _target_modules(draft: Draft, flag: str, values: Sequence[str]) -> None:
    names = [name for value in values for name in value.replace(",", " ").split()]
    if names == ["all-linear"]:
        draft.set("lora.target_modules", "all-linear", flag)
    elif names:
        draft.set("lora.target_modules", json.dumps(names), flag)
    else:
        draft.refuse(f"{flag}: name layers, such as q_proj v_proj", "lora.target_modules")


def _q_lora(draft: Draft, flag: str, values: Sequence[str]) -> None:
    if read(draft, flag, values, truth, "method") == "true":
        draft.method = "qlora"


def _fsdp(draft: Draft, flag: str, values: Sequence[str]) -> None:
    words = " ".join(values).replace(",", " ").lower().split()
    if words in ([], ["false"]):
        return
    unknown = sorted(set(words) - {"full_shard", "auto_wrap", "offload", "true"})
    if unknown:
        why = "vlaunch shards weights, gradients and moments: full_shard auto_wrap, and offload if wanted"
        draft.refuse(f'{flag} "{" ".join(words)}": {why}', "strategy", "deepspeed", "parallel.strategy")
    draft.values["fsdp"] = " ".join(words)
    if "offload" in words:
        draft.set("parallel.offload", "all", flag)


def _steps(draft: Draft, flag: str, values: Sequence[str]) -> None:
    """0 and below leave the length to the epochs."""
    if len(values) == 1 and re.fullmatch(r"-\d+|0", values[0]):
        return
    _sets("train.max_steps", whole)(draft, flag, values)


def _each(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_BF16 = "vlaunch trains in bf16, or in float32 without it: write --bf16 True"
_RECORDED = _told("every step is recorded: vlaunch metrics RUN")
_WRAPPED = _told("each decoder layer is a unit, as the architecture names it")
_REPORTS = dict.fromkeys(["none", "", "[]"], "none") | {"wandb": "wandb"}
_READ = _told("the corpus is tokenised once, kept, and read in place")
_RENDEZVOUS = _told("the processes find each other by themselves")
_ATTENTION = _told("the fastest attention that the card can also run backward is taken")
_OPTIM = dict.fromkeys("adamw_torch adamw_torch_fused adamw_hf".split(), "adamw_torch_fused")
_OPTIM |= dict.fromkeys("adamw_bnb_8bit adamw_8bit".split(), "adamw_bnb_8bit")
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant"}

FLAGS: dict[str, Rule] = {
    # what is trained, on what
    "model_name_or_path": _keeps(None, "model", "size"),
    "data_path": _keeps(None, "data"),
    "eval_data_path": _keeps(None, "eval_data"),
    **_each("output_dir run_name", _keeps(None, "name")),
    "model_max_length": _sets("data.max_length", whole),
    # how
    "num_train_epochs": _sets("train.num_train_epochs", number),
    "max_steps": _steps,
    "learning_rate": _sets("train.learning_rate", number),
    "weight_decay": _sets("train.weight_decay", number),
    "adam_beta1": _sets("train.adam_beta1", number),
    "adam_beta2": _sets("train.adam_beta2", number),
    "adam_epsilon": _sets("train.adam_epsilon", number),
    "max_grad_norm": _sets("train.max_grad_norm", number),
    "warmup_ratio": _sets("train.warmup_ratio", number),
    "warmup_steps": _keeps(whole, "train.warmup_ratio"),
    "lr_scheduler_type": _one_of(
        "train.lr_scheduler_type",
        _SCHEDULES | {"constant_with_warmup": "constant"},
        "schedules are cosine, linear, constant and constant_with_warmup",
    ),
    "optim": _one_of("train.optim", _OPTIM, "optimisers are adamw_torch and adamw_bnb_8bit"),
    "seed": _sets("train.seed", whole),
    "data_seed": _keeps(whole),
    **_each("per_device_train_batch_size per_gpu_train_batch_size", _keeps(whole)),
    "gradient_accumulation_steps": _keeps(whole, "train.global_batch_size"),
    "gradient_checkpointing": _sets("train.gradient_checkpointing", truth),
    "bf16": _sets("train.bf16", truth),
    "tf32": _sets("train.tf32", truth),
    "torch_compile": _sets("train.torch_compile", truth),
    "use_liger_kernel": _sets("train.use_liger_kernel", truth),
    "auto_find_batch_size": _sets("train.auto_batch", truth),
    "load_best_model_at_end": _sets("checkpoint.keep_best", truth),
    "fsdp": _fsdp,
    "deepspeed": _keeps(None, "strategy", "deepspeed"),
    # when it is measured and saved
    **_each("eval_strategy evaluation_strategy save_strategy", _keeps()),
    "eval_steps": _keeps(whole, "train.eval_steps"),
    "save_steps": _keeps(whole, "checkpoint.save_steps", "checkpoint.save_strategy"),
    "save_total_limit": _sets("checkpoint.save_total_limit", whole),
    "logging_steps": _keeps(),
    # adapters
    "lora_r": _lora_only(_sets("lora.r", whole)),
    "lora_alpha": _lora_only(_sets("lora.alpha", whole)),
    "lora_dropout": _lora_only(_sets("lora.dropout", number)),
    "lora_target_modules": _lora_only(_target_modules),
    "load_in_8bit": _lora_only(_sets("lora.load_8bit", truth)),
    "q_lora": _lora_only(_q_lora),
    **_each("lora_bias bias", _only("none", "biases are not trained: none")),
    "lora_weight_path": _only("-", "an adapter is not taken over: take it out"),
    "flash_attn": _ATTENTION,
    # harmless
    "lazy_preprocess": _READ,
    **_each("dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers", _READ),
    **_each("dataloader_prefetch_factor remove_unused_columns", _READ),
    **_each("logging_dir logging_first_step logging_nan_inf_filter logging_strategy", _RECORDED),
    **_each("disable_tqdm log_level log_level_replica log_on_each_node", _RECORDED),
    **_each("per_device_eval_batch_size per_gpu_eval_batch_size eval_accumulation_steps",
            _told("held-out rows are measured in groups like those of training; the loss is the same")),
    **_each("fsdp_transformer_layer_cls_to_wrap fsdp_min_num_params", _WRAPPED),
    **_each("ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_timeout",
            _told("there is no DDP here: fsdp or deepspeed")),
    **_each("ddp_backend local_rank", _RENDEZVOUS),
    "gradient_checkpointing_kwargs": _told("activations are recomputed without re-entering"),
    "overwrite_output_dir": _told("a run is never overwritten: the same --name goes on, another starts afresh"),
    "cache_dir": _told("each machine keeps the base model in its own folder"),
    "eval_on_start": _told("the held-out loss is always measured before the first step"),
    "enable_jit_checkpoint": _told("checkpoint.on_notice does that"),
    **_each("do_train do_eval", _told("it trains; held-out files are measured where there are any")),
    # what vlaunch does anyway, and nothing else
    "fp16": _only("false", _BF16, "train.bf16"),
    **_each("fp16_full_eval bf16_full_eval", _only("false", "held-out losses are measured as in training")),
    **_each("half_precision_backend fp16_backend", _only("auto", _BF16, "train.bf16")),
    "report_to": _report_to,
    **_each("push_to_hub", _only("false", "not in this version: the model is in the run's export/")),
    **_each("group_by_length", _only("false", "--set data.packing=true wastes less")),
    "label_smoothing_factor": _only("0 0.0", "not in this version"),
    "dataloader_drop_last": _only("false", "every conversation is in every pass"),
    "average_tokens_across_devices": _only("true", "every trained token weighs the same"),
    "ignore_data_skip": _only("false", "a run goes on with the very next sample"),
    "resume_from_checkpoint": _only("true false", "the same --name goes on with a run by itself: take it out"),
    "trust_remote_code": _only("false", "code that comes with a model is never run"),
    **_each("use_cpu no_cuda save_only_model save_on_each_node do_predict",
            _only("false", "not in this version")),
    "save_safetensors": _only("true", "weights are always safetensors"),
    "padding_side": _only("right", "rows are never padded on the left"),
    "metric_for_best_model": _only("loss eval_loss", "the best checkpoint is the one with the lowest held-out loss"),
    "greater_is_better": _only("false", "the best checkpoint is the one with the lowest held-out loss"),
    "fsdp_config": _refused('write what is in it as --fsdp "full_shard auto_wrap" (and offload)'),
    "neftune_noise_alpha": _refused("not in this version: take it out"),
}  # fmt: skip

_ONE_COMMAND = _only("0", "one vlaunch command starts all machines: give the line of machine 0")
_LAUNCHED: dict[str, Rule] = {
    **_each("master_addr master_port", _RENDEZVOUS),
    "node_rank": _ONE_COMMAND,
    "nnodes": _keeps(whole, "num_nodes"),
    "nproc_per_node": _keeps(None, "parallel.processes", "gpus"),
}
TORCHRUN: dict[str, Rule] = _LAUNCHED | {
    **_each("rdzv_backend rdzv_conf rdzv_endpoint rdzv_id local_addr standalone use_env", _RENDEZVOUS),
    **_each("max_restarts monitor_interval", _told("a run starts again by itself")),
    **_each(
        "log_dir r redirects t tee local_ranks_filter role start_method", _told("vlaunch logs RUN has it")
    ),
}
DEEPSPEED: dict[str, Rule] = _LAUNCHED | {
    **_each("num_gpus num_accelerators", _LAUNCHED["nproc_per_node"]),
    "num_nodes": _LAUNCHED["nnodes"],
    **_each("include exclude i e", _refused("write CUDA_VISIBLE_DEVICES=0,1 before vlaunch, and --num_gpus")),
    **_each("hostfile H", _refused("machines come from --infra and --num-nodes: take it out")),
    **_each("no_local_rank no_ssh no_ssh_check ssh_port launcher", _RENDEZVOUS),
    **_each("enable_each_rank_log log_level quiet save_pid", _told("vlaunch logs RUN has it")),
}
# Flags of the launchers that take no value.
SWITCHES = frozenset(
    "standalone use_env no_local_rank no_ssh no_ssh_check quiet save_pid m module no_python run_path force_multi "
    "bind_cores_to_rank".split()
)
FULL_SCRIPTS = ("train", "train_mem", "train_xformers", "train_flash_attn")
LORA_SCRIPTS = ("train_lora",)


def known(rules: Iterable[str]) -> list[str]:
    return sorted(f"--{name}" for name in rules)
