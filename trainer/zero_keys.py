"""What becomes of each key of a DeepSpeed configuration: the rules that zero_config.py reads a file by.

Key names are those of DeepSpeed 0.19.8 (runtime/constants.py, runtime/zero/config.py); what "auto" becomes is
transformers 5.17's integrations/deepspeed.py. A key without a rule is refused, unless it is a block that is
switched off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from trainer.config import Offload
from trainer.errors import nearest

# No figure of a run is as large; infinities and NaN are not smaller either.
_MORE_THAN_ANY = 10**18
ACCUMULATION = "gradient_accumulation_steps"
# What --auto-batch finds on the machine.
PER_DEVICE = ("train_micro_batch_size_per_gpu", ACCUMULATION)
# HfTrainerDeepSpeedConfig.trainer_config_finalize of transformers.
FROM_HIDDEN_SIZE: dict[str, Callable[[int], int]] = {
    "reduce_bucket_size": lambda hidden: hidden * hidden,
    "stage3_prefetch_bucket_size": lambda hidden: int(0.9 * hidden * hidden),
    "stage3_param_persistence_threshold": lambda hidden: 10 * hidden,
}


class Expected(NamedTuple):
    """A value that the file repeats: `field` of the configuration must have it."""

    key: str
    value: float | bool | str
    field: str


class Reading:
    """What has been understood so far; `problems` are told together."""

    def __init__(self) -> None:
        self.stage: int | None = None
        self.bf16: bool | None = None
        self.schedule: Literal["constant", "linear"] | None = None
        self.devices: dict[str, str] = {}
        self.extra: dict[str, Any] = {}
        self.expected: list[Expected] = []
        self.notes: list[str] = []
        self.problems: list[str] = []

    def refuse(self, path: str, why: str) -> None:
        self.problems.append(f"{path}: {why}")

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def block(self, path: str, value: Any, rules: Mapping[str, Rule]) -> None:
        """Each key by its rule."""
        if not isinstance(value, Mapping):
            self.refuse(path, f"{json.dumps(value)} is not an object of keys")
            return
        for key, item in value.items():
            full = f"{path}.{key}" if path else key
            if key in rules:
                rules[key](self, full, item)
            elif not _switched_off(item):
                close = nearest(key, rules)
                self.refuse(full, f"vlaunch has nothing for it{f'; did you mean {close}?' if close else ''}")

    def keep(self, path: str, value: Any) -> None:
        """Pass a key on to DeepSpeed."""
        *blocks, leaf = path.split(".")
        tree = self.extra
        for name in blocks:
            tree = tree.setdefault(name, {})
        tree[leaf] = value

    def offload(self) -> Offload:
        optimizer, weights = self.devices.get("offload_optimizer"), self.devices.get("offload_param")
        path = "zero_optimization.offload_param"
        if weights == "cpu" and self.stage == 2:
            self.refuse(path, "weights are offloaded under stage 3 only")
        elif weights == "cpu" and optimizer != "cpu":
            self.refuse(
                path, 'weights go together with the optimiser: add offload_optimizer, "device": "cpu"'
            )
        return "all" if weights == "cpu" else "optimizer" if optimizer == "cpu" else "none"


Rule = Callable[[Reading, str, Any], None]


def _switched_off(block: Any) -> bool:
    return isinstance(block, Mapping) and (not block or block.get("enabled") is False)


def _kept(*kinds: type, auto: bool = False) -> Rule:
    """Passed on to DeepSpeed, once it is of the right kind. An integer may be written 5e8."""
    wanted = "true or false" if bool in kinds else "a whole number" if float not in kinds else "a number"

    def rule(reading: Reading, path: str, value: Any) -> None:
        if int in kinds and isinstance(value, float) and value.is_integer():
            value = int(value)
        right = type(value) in kinds and 0 <= value < _MORE_THAN_ANY
        if right or (auto and value == "auto"):
            reading.keep(path, value)
        else:
            reading.refuse(path, f"{json.dumps(value)} is not {wanted}")

    return rule


def _only(allowed: Iterable[Any], why: str) -> Rule:
    """Nothing to do for these values; any other is refused."""
    texts = {json.dumps(value) for value in allowed}

    def rule(reading: Reading, path: str, value: Any) -> None:
        if json.dumps(value) not in texts:
            reading.refuse(path, f"{json.dumps(value)}: {why}")

    return rule


def _off(why: str) -> Rule:
    """A block that says something only when it is switched on."""

    def rule(reading: Reading, path: str, value: Any) -> None:
        if not _switched_off(value):
            reading.refuse(path, why)

    return rule


def _told(note: str) -> Rule:
    """Harmless: what happens instead is said."""
    return lambda reading, path, value: reading.note(f"{path}: {note}")


def _nothing(reading: Reading, path: str, value: Any) -> None:
    """It means nothing in DeepSpeed either."""


def _inner(rules: Mapping[str, Rule]) -> Rule:
    return lambda reading, path, value: reading.block(path, value, rules)


def _expects(field: str) -> Rule:
    """A number of the run, or "auto"."""

    def rule(reading: Reading, path: str, value: Any) -> None:
        if value == "auto":
            return
        right = type(value) in (int, float) and -_MORE_THAN_ANY < value < _MORE_THAN_ANY
        if not right:
            reading.refuse(path, f'{json.dumps(value)} is neither a number nor "auto"')
        elif field == ACCUMULATION and (value < 1 or value != int(value)):
            reading.refuse(path, f"{json.dumps(value)} is no number of steps")
        else:
            reading.expected.append(Expected(path, value, field))

    return rule


def _bf16_enabled(reading: Reading, path: str, value: Any) -> None:
    if value == "auto":
        return
    if not isinstance(value, bool):
        reading.refuse(path, f'{json.dumps(value)} is not true, false or "auto"')
        return
    reading.bf16 = value
    reading.expected.append(Expected(path, value, "train.bf16"))


def _betas(reading: Reading, path: str, value: Any) -> None:
    if value == "auto":
        return
    if not isinstance(value, list) or len(value) != 2:
        reading.refuse(path, f"{json.dumps(value)} is not two numbers")
        return
    for index, number in enumerate(value):
        _expects(f"train.adam_beta{index + 1}")(reading, f"{path}[{index}]", number)


_SCHEDULES: dict[str, Literal["constant", "linear"]] = {"WarmupLR": "constant", "WarmupDecayLR": "linear"}


def _schedule(reading: Reading, path: str, value: Any) -> None:
    if not isinstance(value, str) or value not in _SCHEDULES:
        why = "take the block out and set train.lr_scheduler_type (cosine, linear or constant)"
        reading.refuse(path, f"{json.dumps(value)}: {why}")
        return
    reading.schedule = _SCHEDULES[value]
    reading.expected.append(Expected(f"{path} {value}", reading.schedule, "train.lr_scheduler_type"))


def _scheduler(reading: Reading, path: str, value: Any) -> None:
    reading.block(path, value, {"type": _schedule, "params": _inner(_SCHEDULER_PARAMS)})
    params = value.get("params") if isinstance(value, Mapping) else None
    if not isinstance(params, Mapping) or "warmup_type" not in params:
        reading.note(f"{path}: the rate rises in a straight line; DeepSpeed's own rises by a logarithm")


def _stage(reading: Reading, path: str, value: Any) -> None:
    if type(value) is int and value in (2, 3):
        reading.stage = value
        return
    hints = {"0": "--strategy fsdp needs no such file", "1": "2 computes the same and holds less"}
    hint = hints.get(json.dumps(value), "write one of them")
    reading.refuse(path, f"{json.dumps(value)}: stages are 2 and 3; {hint}")


def _device(reading: Reading, path: str, value: Any) -> None:
    block, _, _ = path.rpartition(".")
    reading.devices[block.rpartition(".")[2]] = str(value)
    _only(("cpu", "none"), 'only host memory takes weights and moments: "cpu"')(reading, path, value)


def _old_offload(block: str) -> Rule:
    """The spelling of DeepSpeed before 0.4: a truth instead of a block."""

    def rule(reading: Reading, path: str, value: Any) -> None:
        if not isinstance(value, bool):
            reading.refuse(path, f"{json.dumps(value)} is not true or false")
        elif value:
            reading.devices.setdefault(block, "cpu")
            reading.note(f'{path} is {block} with "device": "cpu" today')

    return rule


def _zero(reading: Reading, path: str, value: Any) -> None:
    reading.block(path, value, _ZERO)
    if isinstance(value, Mapping) and "stage" not in value:
        reading.refuse(f"{path}.stage", "it is missing; write 2 or 3")


def _each(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_AUTO_OR_OFF = ("auto", False)
_BF16_INSTEAD = 'vlaunch trains in bf16 or float32; write "bf16": {"enabled": "auto"} instead'
_FALSE = _only((False,), "not in this version")
_ADAMW = _only((True,), "the optimiser is AdamW in float32")
_OWN_OPTIMISER = _told("the optimiser is train.optim's")
_OWN_CHECKPOINTS = _told("vlaunch writes checkpoints of its own, for any number of processes")
_WHOLE_WEIGHTS = _told("the export always holds the whole weights")
_ONE_WAY = _only((1, -1, False, None), "weights are spread over all processes in one way, unquantised")
_ANY_SIZE = _only((False,), "checkpoints could not be read by another number of processes")
_NO_DISK = _only((None, False), "nothing is offloaded to disks")

# "auto" is the --fp16 of the command line, and there is none here: off. Loss scaling then means nothing.
_FP16: dict[str, Rule] = {
    "enabled": _only(_AUTO_OR_OFF, _BF16_INSTEAD),
    **_each("auto_cast consecutive_hysteresis fp16_master_weights_and_grads hysteresis", _nothing),
    **_each("initial_scale_power loss_scale loss_scale_window min_loss_scale", _nothing),
}
_BF16: dict[str, Rule] = {
    "enabled": _bf16_enabled,
    **_each("bf16_master_weights_and_grads bf16_optimizer_states check_grad_overflow", _FALSE),
}
# DeepSpeed's Adam is AdamW unless adam_w_mode says otherwise (runtime/engine.py).
_OPTIMIZER: dict[str, Rule] = {
    "type": _only(("AdamW", "Adam", "adamw", "adam"), "the optimiser is AdamW: see train.optim"),
    "params": _inner(
        {
            "lr": _expects("train.learning_rate"),
            "betas": _betas,
            "eps": _expects("train.adam_epsilon"),
            "weight_decay": _expects("train.weight_decay"),
            "torch_adam": _OWN_OPTIMISER,
            "amsgrad": _FALSE,
            **_each("adam_w_mode bias_correction fp32_optimizer_states", _ADAMW),
        }
    ),
    "legacy_fusion": _FALSE,
}
_SCHEDULER_PARAMS: dict[str, Rule] = {
    "warmup_min_lr": _only(("auto", 0, 0.0), "the rate rises from zero"),
    "warmup_max_lr": _expects("train.learning_rate"),
    "warmup_num_steps": _only(("auto",), 'write "auto" and set train.warmup_ratio'),
    "total_num_steps": _expects("train.max_steps"),
    "warmup_type": _only(("linear",), 'the rate rises in a straight line; write "linear"'),
}
_OFFLOAD: dict[str, Rule] = {
    "device": _device,
    "super_offload": _FALSE,
    **_each("pin_memory fast_init", _kept(bool)),
    **_each("buffer_count buffer_size max_in_cpu", _kept(int)),
    "cpuadam_cores_perc": _kept(int, float),
    "ratio": _only((1, 1.0), "the state of the optimiser moves as a whole"),
    **_each("nvme_path pipeline_read pipeline_write", _NO_DISK),
}
_ZERO: dict[str, Rule] = {
    "stage": _stage,
    **_each("offload_optimizer offload_param", _inner(_OFFLOAD)),
    "cpu_offload": _old_offload("offload_optimizer"),
    **_each("cpu_offload_param cpu_offload_params", _old_offload("offload_param")),
    "cpu_offload_use_pin_memory": _told("pin_memory is as DeepSpeed has it"),
    **_each(
        "stage3_gather_16bit_weights_on_model_save stage3_gather_fp16_weights_on_model_save", _WHOLE_WEIGHTS
    ),
    **_each("elastic_checkpoint load_from_fp32_weights pipeline_loading_checkpoint", _OWN_CHECKPOINTS),
    **_each(
        "mics_hierarchical_params_gather mics_shard_size zero_hpz_partition_size zero_quantized_gradients "
        "zero_quantized_nontrainable_weights zero_quantized_weights",
        _ONE_WAY,
    ),
    "legacy_stage1": _FALSE,
    **_each("parameter_alignment round_robin_gradients", _ANY_SIZE),
    **_each(
        "allgather_partitions contiguous_gradients enable_sanity_checks ignore_unused_parameters "
        "log_trace_cache_warnings memory_efficient_linear overlap_comm reduce_scatter "
        "stage3_allgather_sequential stage3_use_all_reduce_for_fetch_params "
        "use_multi_rank_bucket_allreduce",
        _kept(bool),
    ),
    **_each(
        "allgather_bucket_size stage3_max_live_parameters stage3_max_reuse_distance "
        "stage3_model_persistence_threshold stage3_module_granularity_threshold sub_group_size",
        _kept(int),
    ),
    **_each(" ".join(FROM_HIDDEN_SIZE), _kept(int, auto=True)),
}
TOP: dict[str, Rule] = {
    "zero_optimization": _zero,
    "train_batch_size": _expects("train.global_batch_size"),
    "train_micro_batch_size_per_gpu": _expects("train.per_device_train_batch_size"),
    ACCUMULATION: _expects(ACCUMULATION),
    "gradient_clipping": _expects("train.max_grad_norm"),
    "fp16": _inner(_FP16),
    **_each("bf16 bfloat16", _inner(_BF16)),
    **_each("amp torch_autocast", _off(_BF16_INSTEAD)),
    "optimizer": _inner(_OPTIMIZER),
    "scheduler": _scheduler,
    **_each("zero_allow_untested_optimizer zero_force_ds_cpu_optimizer", _OWN_OPTIMISER),
    "checkpoint": _OWN_CHECKPOINTS,
    "elasticity": _off("a run goes on with any number of processes by itself"),
    "activation_checkpointing": _told(
        "it means nothing to Hugging Face models; train.gradient_checkpointing recomputes activations"
    ),
    "steps_per_print": _told("every step is recorded: vlaunch metrics"),
    "wall_clock_breakdown": _only((False,), "every step's time is recorded: vlaunch metrics"),
    "communication_data_type": _only((None,), "gradients are summed as parallel.strategy does it"),
    "dataloader_drop_last": _only((False,), "every conversation is in every pass"),
    **_each("disable_allgather dump_state memory_breakdown prescale_gradients sparse_gradients", _FALSE),
}
