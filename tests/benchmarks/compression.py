"""What zstd would save of a checkpoint, and what it would cost: ratio and CPU seconds per GB, on real states.

    python tests/benchmarks/compression.py [--steps 40] [--run FOLDER]

Trains a LLaMA of 15 million weights for some steps (or takes a run that is there), and compresses what its newest
checkpoint holds: float32 weights, AdamW's two moments, and the weights as bf16, as they are and with the bytes of equal
significance put together (shuffled). Needs the package zstandard.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # a script finds what follows only now: hence E402

import torch  # noqa: E402
import zstandard  # noqa: E402
from safetensors import safe_open  # noqa: E402

from tests.trainer.runs import create_run, write_corpus  # noqa: E402
from trainer.artifacts.store import open_store  # noqa: E402
from trainer.artifacts.validity import valid_manifests  # noqa: E402

SHAPE = {
    "model_type": "llama", "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 7,
    "num_attention_heads": 6, "num_key_value_heads": 6, "tie_word_embeddings": True,
}  # fmt: skip


def train(folder: Path, steps: int) -> Path:
    run = folder / "runs/compressed"
    create_run(
        str(run), write_corpus(folder / "train.jsonl", 2000), model__shape=SHAPE, model__dropout=0.0, train__bf16=True,
        train__max_steps=steps, data__max_length=128, checkpoint__save_steps=steps,
    )  # fmt: skip
    command = [sys.executable, "-m", "trainer", "--run", str(run), "--workdir", str(folder / "work")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"VLAUNCH_CLOUD": "none"})
    return run


def parts(run: Path) -> dict[str, bytes]:
    """The newest checkpoint's bytes by kind."""
    found: dict[str, list[torch.Tensor]] = {}
    for file in valid_manifests(open_store(str(run)))[0].files:
        with safe_open(str(run / file.key), framework="pt") as tensors:
            for name in tensors.keys():
                if not name.startswith("rng."):
                    found.setdefault(kind_of(name), []).append(tensors.get_tensor(name))
    flat = {
        kind: torch.cat([tensor.flatten().float() for tensor in all_of]) for kind, all_of in found.items()
    }
    made = {f"{kind}, float32": tensor.numpy().tobytes() for kind, tensor in flat.items()}
    made["weights, bf16"] = flat["weights"].to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    return made


def kind_of(name: str) -> str:
    if "exp_avg_sq" in name:
        return "second moment"
    return "first moment" if "exp_avg" in name else "weights"


def shuffled(data: bytes, width: int) -> bytes:
    return (
        torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, width).T.contiguous().numpy().tobytes()
    )


def timed(work: Callable[[], bytes]) -> tuple[bytes, float]:
    began = time.process_time()
    made = work()
    return made, time.process_time() - began


def measure(kind: str, data: bytes, level: int, width: int) -> None:
    """One line; a width of 1 is not shuffled."""
    squeeze, expand = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
    whole, shuffle_s = timed(lambda: shuffled(data, width) if width > 1 else data)
    small, squeeze_s = timed(lambda: squeeze.compress(whole))
    _, expand_s = timed(lambda: expand.decompress(small))
    way = f"-{level}{' shuffled' if width > 1 else ''}"
    saved, gb = 1 - len(small) / len(data), len(data) / 1e9
    print(
        f"{kind:<24} {len(data) / 1e6:>6.0f}  {way:<12} {saved:>7.1%} {(shuffle_s + squeeze_s) / gb:>9.2f} "
        f"{expand_s / gb:>6.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--run", type=Path, help="a run that is there")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        found = parts(wanted.run or train(Path(scratch), wanted.steps))
    print(f"{'':<24} {'MB':>6}  {'zstd':<12} {'saved':>7} {'CPU s/GB':>9} {'back':>6}")
    for kind, data in found.items():
        for level in (1, 3):
            for width in (1, 2 if "bf16" in kind else 4):
                measure(kind, data, level, width)


if __name__ == "__main__":
    main()
