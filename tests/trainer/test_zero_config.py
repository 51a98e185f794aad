"""A user's DeepSpeed file: each key is honoured, translated or refused by name; "auto" is what transformers means."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config import TrainConfig, override
from trainer.errors import ConfigError, UsageError
from trainer.zero_config import ZeroConfig, fill_auto, parse_zero_config, read_zero_config
from trainer.zero_keys import TOP

# FastChat's playground/deepspeed_config_s2.json
FASTCHAT_S2: dict[str, Any] = {
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "cpu"},
        "contiguous_gradients": True,
        "overlap_comm": True,
    },
    "fp16": {"enabled": "auto"},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
}
# FastChat's playground/deepspeed_config_s3.json
FASTCHAT_S3: dict[str, Any] = {
    "fp16": {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1,
    },
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "cpu", "pin_memory": True},
        "overlap_comm": True,
        "contiguous_gradients": True,
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_prefetch_bucket_size": 5e8,
        "stage3_param_persistence_threshold": 1e6,
        "sub_group_size": 1e12,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
}
# The form of transformers' documentation, which the Antrea document's playground follows.
ALL_AUTO: dict[str, Any] = {
    "bf16": {"enabled": "auto"},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
    },
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {
            "warmup_min_lr": "auto",
            "warmup_max_lr": "auto",
            "warmup_num_steps": "auto",
            "total_num_steps": "auto",
        },
    },
    "zero_optimization": {
        "stage": 3,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
    },
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "steps_per_print": 2000,
    "wall_clock_breakdown": False,
    "tensorboard": {"enabled": False},
}
# The deepspeed-config.json of the 16 GB document's repository.
SIXTEEN_GB: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "steps_per_print": 50,
    "gradient_clipping": 1.0,
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "cpu"},
        "contiguous_gradients": True,
        "overlap_comm": True,
    },
    "zero_allow_untested_optimizer": True,
    "fp16": {
        "enabled": True,
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "hysteresis": 2,
        "min_loss_scale": 1,
    },
    "optimizer": {
        "type": "Adam",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
    },
    "activation_checkpointing": {"partition_activations": True, "contiguous_memory_optimization": True},
    "wall_clock_breakdown": False,
}


def with_zero(**zero: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": 2} | zero}


def config_of(found: ZeroConfig, *settings: tuple[str, str]) -> TrainConfig:
    return override(TrainConfig(), [*found.settings(), *settings])[0]


def refused(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_zero_config(raw, "ds.json")
    return caught.value.message


def test_fastchats_stage_2_offloads_the_optimiser() -> None:
    found = parse_zero_config(FASTCHAT_S2, "s2.json")

    assert (found.stage, found.offload, found.bf16) == (2, "optimizer", None)
    assert found.extra == {"zero_optimization": {"contiguous_gradients": True, "overlap_comm": True}}
    assert any("train.max_grad_norm" in note for note in found.notes)


def test_fastchats_stage_3_offloads_everything_and_its_sizes_are_whole_numbers() -> None:
    found = parse_zero_config(FASTCHAT_S3, "s3.json")

    assert (found.stage, found.offload) == (3, "all")
    zero = found.extra["zero_optimization"]
    assert zero["stage3_prefetch_bucket_size"] == 500_000_000
    assert all(type(value) is int for name, value in zero.items() if name.startswith("stage3_"))
    assert zero["offload_param"] == zero["offload_optimizer"] == {"pin_memory": True}
    assert "stage3_gather_16bit_weights_on_model_save" not in zero
    assert any("export always holds the whole weights" in note for note in found.notes)


def test_a_file_becomes_fields_of_the_configuration() -> None:
    config = config_of(parse_zero_config(FASTCHAT_S3, "s3.json"))

    assert (config.parallel.strategy, config.parallel.zero_stage, config.parallel.offload) == (
        "deepspeed",
        3,
        "all",
    )
    assert config.parallel.deepspeed["zero_optimization"]["sub_group_size"] == 10**12
    assert config.train == TrainConfig().train


def test_the_file_of_the_16_gb_document_is_refused_for_its_fp16_alone() -> None:
    message = refused(SIXTEEN_GB)

    assert message.count("\n") == 1 and "fp16.enabled: true: vlaunch trains in bf16" in message

    found = parse_zero_config(SIXTEEN_GB | {"fp16": {"enabled": False}}, "ds.json")
    assert found.stage == 2
    assert found.check(TrainConfig(), None) == []
    assert {note.split(": ")[1] for note in found.notes} == {
        "steps_per_print",
        "zero_allow_untested_optimizer",
        "activation_checkpointing",
    }


def test_a_schedule_in_the_file_is_the_schedule_of_the_run() -> None:
    found = parse_zero_config(ALL_AUTO, "ds.json")

    assert config_of(found).train.lr_scheduler_type == "linear"
    assert any("straight line" in note for note in found.notes)
    with pytest.raises(ConfigError, match=r"WarmupDecayLR is linear, train.lr_scheduler_type is cosine"):
        found.check(config_of(found, ("train.lr_scheduler_type", "cosine")), None)


def test_deepspeed_itself_takes_every_key_that_is_passed_on() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's import
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from trainer import zero_keys

    sample: dict[str, Any] = {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 1}}
    known = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    for name in zero_keys._ZERO:
        for value in (False, 5e8):
            reading = zero_keys.Reading()
            zero_keys._ZERO[name](reading, f"zero_optimization.{name}", value)
            if reading.extra:
                assert name in known
                sample |= reading.extra["zero_optimization"]
    assert len(sample) > 20
    assert DeepSpeedZeroConfig(**sample).reduce_bucket_size == 500_000_000


def test_auto_sizes_are_filled_as_transformers_fills_them() -> None:
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    found = parse_zero_config(ALL_AUTO, "ds.json")
    theirs = HfTrainerDeepSpeedConfig(
        json.loads(json.dumps({"zero_optimization": ALL_AUTO["zero_optimization"]}))
    )
    arguments = SimpleNamespace(get_warmup_steps=lambda steps: 0)
    theirs.trainer_config_finalize(arguments, SimpleNamespace(config=SimpleNamespace(hidden_size=4096)), 10)

    ours = fill_auto(found.extra, hidden_size=4096)["zero_optimization"]
    assert {"stage": 3, **ours} == theirs.config["zero_optimization"]
    assert found.extra["zero_optimization"]["reduce_bucket_size"] == "auto"


def test_numbers_that_the_file_repeats_must_be_those_of_the_run() -> None:
    raw = with_zero() | {
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 2e-5, "betas": [0.9, 0.95]}},
    }
    found = parse_zero_config(raw, "ds.json")
    fits = [
        ("train.global_batch_size", "16"),
        ("train.per_device_train_batch_size", "2"),
        ("train.adam_beta2", "0.95"),
    ]

    assert found.check(config_of(found, *fits), 2) == []
    assert found.check(config_of(found, *fits), None) == [
        "gradient_accumulation_steps 4 of the DeepSpeed file holds on 2 processes"
    ]
    with pytest.raises(ConfigError) as caught:
        found.check(config_of(found, ("train.learning_rate", "1e-4"), ("train.bf16", "false")), 2)
    for both in (
        "train_batch_size is 16, train.global_batch_size is 128",
        "train_micro_batch_size_per_gpu is 2, train.per_device_train_batch_size is 4",
        "gradient_accumulation_steps is 4, which with rows of 4 on 2 processes is no global batch of 128",
        "bf16.enabled is true, train.bf16 is false",
        "optimizer.params.lr is 2e-05, train.learning_rate is 0.0001",
        "optimizer.params.betas[1] is 0.95, train.adam_beta2 is 0.999",
    ):
        assert both in caught.value.message
    assert "gradient_clipping" not in caught.value.message
    with pytest.raises(ConfigError, match="on 4 processes"):
        found.check(config_of(found, *fits), 4)


def test_what_auto_batch_will_find_on_the_machine_is_not_compared() -> None:
    found = parse_zero_config(with_zero() | {"train_micro_batch_size_per_gpu": 2}, "ds.json")

    assert found.check(config_of(found, ("train.auto_batch", "true")), 2) == []


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({}, ["zero_optimization", "it is missing"]),
        ({"zero_optimization": True}, ["zero_optimization: true is not an object"]),
        ({"zero_optimization": {}}, ["zero_optimization.stage", "write 2 or 3"]),
        ({"zero_optimization": {"stage": 1}}, ["zero_optimization.stage: 1", "2 computes the same"]),
        ({"zero_optimization": {"stage": 0}}, ["--strategy fsdp"]),
        ({"zero_optimization": {"stage": "auto"}}, ['zero_optimization.stage: "auto"']),
        (with_zero(overlap_com=True), ["zero_optimization.overlap_com", "did you mean overlap_comm?"]),
        (with_zero(overlap_comm="yes"), ['overlap_comm: "yes" is not true or false']),
        (with_zero(reduce_bucket_size=-1), ["reduce_bucket_size: -1 is not a whole number"]),
        (with_zero(allgather_bucket_size="auto"), ['allgather_bucket_size: "auto"']),
        (with_zero(offload_optimizer={"device": "nvme"}), ["offload_optimizer.device", "host memory"]),
        (with_zero(offload_param={"device": "cpu"}), ["offload_param", "stage 3 only"]),
        (with_zero(stage=3, offload_param={"device": "cpu"}), ["offload_param", "add offload_optimizer"]),
        (with_zero(zero_quantized_weights=True), ["zero_quantized_weights", "unquantised"]),
        (with_zero(zero_hpz_partition_size=8), ["zero_hpz_partition_size: 8"]),
        (with_zero() | {"fp16": {"enabled": True}}, ["fp16.enabled", '"bf16": {"enabled": "auto"}']),
        (with_zero() | {"bf16": {"enabled": "yes"}}, ["bf16.enabled"]),
        (with_zero() | {"amp": {"enabled": True, "opt_level": "O1"}}, ["amp", "bf16"]),
        (with_zero() | {"optimizer": {"type": "OneBitAdam"}}, ["optimizer.type", "OneBitAdam", "AdamW"]),
        (with_zero() | {"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}}, ["adam_w_mode"]),
        (with_zero() | {"optimizer": {"type": "AdamW", "params": {"lr": "1e-5"}}}, ["optimizer.params.lr"]),
        (with_zero() | {"scheduler": {"type": "OneCycle"}}, ["scheduler.type", "OneCycle", "cosine"]),
        (
            with_zero() | {"scheduler": {"type": "WarmupLR", "params": {"warmup_type": "log"}}},
            ["scheduler.params.warmup_type", "linear"],
        ),
        (with_zero() | {"elasticity": {"enabled": True}}, ["elasticity", "any number of processes"]),
        (with_zero() | {"wandb": {"enabled": True}}, ["wandb: vlaunch has nothing for it"]),
        (with_zero() | {"gradient_acumulation_steps": 1}, ["did you mean gradient_accumulation_steps?"]),
        (with_zero() | {"train_batch_size": True}, ["train_batch_size: true"]),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_key(raw: dict[str, Any], words: list[str]) -> None:
    message = refused(raw)

    assert [word for word in words if word not in message] == []


def test_everything_that_cannot_be_done_is_told_at_once() -> None:
    message = refused(with_zero(stage=1, no_such=1) | {"fp16": {"enabled": True}, "aio": {"thread_count": 1}})

    assert message.count("\n") == 4
    assert all(key in message for key in ("stage", "no_such", "fp16.enabled", "aio"))


def test_the_old_spelling_of_offloading_is_understood() -> None:
    found = parse_zero_config(with_zero(cpu_offload=True), "ds.json")

    assert found.offload == "optimizer"
    assert any("cpu_offload is offload_optimizer" in note for note in found.notes)


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["auto", "cpu", "Adam"])
)
NAMES = st.sampled_from("stage device enabled type params lr betas overlap_comm reduce_bucket_size x".split())
TREES = st.recursive(LEAVES, lambda tree: st.lists(tree) | st.dictionaries(NAMES, tree), max_leaves=6)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from(list(TOP)) | NAMES, TREES, max_size=4))
def test_whatever_is_in_a_file_there_is_a_meaning_or_one_error(raw: dict[str, Any]) -> None:
    try:
        found = parse_zero_config(raw, "ds.json")
    except ConfigError as error:
        assert error.message.startswith("ds.json has what vlaunch cannot do")
    else:
        assert config_of(found).parallel.zero_stage == found.stage


@pytest.mark.parametrize("name", [*TOP, "zero_optimization.surprise", "surprise"])
def test_no_key_is_silently_dropped(name: str) -> None:
    """A value that no key has: it is refused by its key, or a note says that the key means nothing here."""
    block, _, leaf = name.rpartition(".")
    raw = with_zero(**{leaf: "surprise"}) if block else with_zero() | {leaf: "surprise"}
    try:
        found = parse_zero_config(raw, "ds.json")
    except ConfigError as error:
        assert f"{name}: " in error.message
    else:
        assert any(note.startswith(f"ds.json: {name}: ") for note in found.notes)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        (None, UsageError, ["none.json", "No such file"]),
        ('{"a": 1,}', ConfigError, ["is not JSON", "line 1"]),
        ("[1]", ConfigError, ["is a list, not an object"]),
        ('{"bf16": {"enabled": true, "enabled": false}}', ConfigError, ["says enabled twice"]),
        ("\xff", UsageError, ["cannot read"]),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, text: str | None, kind: type[UsageError], words: list[str]
) -> None:
    path = tmp_path / "none.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))

    with pytest.raises(kind) as caught:
        read_zero_config(path)
    assert [word for word in (str(path), *words) if word not in caught.value.message] == []
