"""What an optimizer step of SSO v2 costs: ours, in both layouts, against trl's newest DPOTrainer.

    python benchmarks/train_step.py                       both CPU shapes, 7 minutes
    python benchmarks/train_step.py --full                ... with all contenders and more steps, 25 minutes
    python benchmarks/train_step.py --growth              how ours grows, 10 minutes
    python benchmarks/train_step.py --device cuda --shapes 1.5b 7b --response 2048 2048

One step is 4 samples (`--batch`) of L+ and L-. trl is fed the two as rows, with losses sigmoid and sft, so both
minimise the same sum. Each contender runs by itself in a process of its own, one after the other, over the same
samples and from the same random weights; its figures are CPU-seconds (CUDA: seconds) of Trainer's steps after the
first and the process's peak memory. The last step is not among them: it is profiled, for its calls of attention
kernels, how many shapes they and the matrix products come in (a kernel library plans each anew), and how often Python
waits for the device. The floor is the arithmetic that no method can leave out: 6 x weights x tokens
that need them (contexts and distinct responses once, the head at response positions), at the measured rate of a
large matmul.
"""

import argparse
import copy
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
)
SHAPES = {
    "0.5m": (512, 128, 256, 3, 2, 1, True),
    "42m": (151_936, 256, 512, 4, 4, 2, True),
    "1.5b": (151_936, 1536, 8960, 28, 12, 2, True),
    "7b": (152_064, 3584, 18944, 28, 28, 4, False),
}
"""Qwen2 models by their `SIZES`; weights are random."""
CONTENDERS = ("trl", "trl precomputed", "ours padded", "ours forest")
SLOW = {"42m": ("trl", "ours forest")}
"""Who runs without `--full` where a step of each takes a minute."""
STEPS = {"0.5m": (9, 17)}
"""Steps by shape, without and with `--full`; 3 and 5 for the others."""
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tokenizer(vocabulary: int) -> Any:
    """One token a word, so that lengths are exact."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<end>", "<system>", "<user>", "<assistant>"]
    words = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(vocabulary - len(special)))])}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<pad>", chat_template=TEMPLATE)
    made.add_special_tokens({"additional_special_tokens": special[2:]})
    return made


def triples(args: argparse.Namespace, vocabulary: int) -> list[Any]:
    """Samples with uniform lengths: by default a query of 20-60, a principle of 80-160, responses of 40-200 tokens."""
    import numpy as np

    from sso.records import Triple

    rng = np.random.default_rng(0)

    def words(low: int, high: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(0, vocabulary - 5, rng.integers(low, high + 1)))

    return [
        Triple(
            id=str(i),
            prompt=words(20, 60),
            system_good=words(*args.system),
            system_bad=words(*args.system),
            chosen=words(*args.response),
            rejected=words(*args.response),
            original=words(*args.response),
        )
        for i in range(args.samples)
    ]


def clock(device: str) -> float:
    """CPU-seconds of this process; on CUDA seconds, when all queued work is done."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


ATTENTION = re.compile(r"_(flash|efficient|cudnn)_attention_(forward|backward|for_cpu)")
"""The kernels, by torch's names; `_scaled_dot_product_...` calls them on CUDA."""
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")


CALLS = ("attention", "attention_shapes", "product_shapes", "waits")


def calls(profile: Any) -> dict[str, int]:
    """What a profiled step called: attention kernels, shapes of theirs and of matrix products, waits for the device."""
    attention, waits = 0, 0
    shapes: set[tuple[str, str]] = set()
    products: set[tuple[str, str]] = set()
    for event in profile.events():
        if ATTENTION.search(event.name) and not event.name.startswith("autograd"):
            attention += 1
            shapes.add((event.name, str(event.input_shapes)))
        elif event.name in PRODUCTS:
            products.add((event.name, str(event.input_shapes)))
        waits += event.name in ("aten::_local_scalar_dense", "cudaStreamSynchronize", "cudaDeviceSynchronize")
    return dict(zip(CALLS, (attention, len(shapes), len(products), waits), strict=True))


def timer(device: str) -> Any:
    """A callback that keeps the length of each step but the last, and what that called."""
    import torch
    from transformers import TrainerCallback

    class Timer(TrainerCallback):
        def __init__(self) -> None:
            self.steps: list[float] = []
            self.profile = torch.profiler.profile(record_shapes=True)
            self.calls: dict[str, int] = {}

        def on_step_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            self.last = state.global_step == state.max_steps - 1 and bool(self.steps)
            if self.last:
                self.profile.start()
            self.start = clock(device)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if self.last:
                self.profile.stop()
                self.calls = calls(self.profile)
            else:
                self.steps.append(clock(device) - self.start)

    return Timer()


def run_ours(args: argparse.Namespace, model: Any, words: Any, records: list[Any], layout: str, steps: Any) -> Any:
    """PreferenceTrainer, the reference scored before."""
    from sso import reference
    from sso.objective import build
    from sso.packing import tokenize
    from sso.train.preference import fit
    from sso.train.run import training_arguments
    from sso.train.settings import Training

    training = Training(
        objective="sso_v2", layout=layout, batch_size=args.batch, tokens_per_batch=args.tokens, max_length=32_768,
        dtype="bfloat16" if args.device == "cuda" else "float32", gradient_checkpointing=args.device == "cuda",
    )  # fmt: skip
    objective, samples = build(training), tokenize(records, words, training.max_length).samples
    start = clock(args.device)
    scores = reference.score(
        model, samples, objective.nodes, words.pad_token_id, {"dtype": training.dtype}, layout, args.tokens
    )
    scored = clock(args.device) - start
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(training, 5e-7, 0, Path(folder))
        trainer = fit(model, words, samples, scores, objective, arguments, callbacks=[steps])
    log = [row for row in trainer.state.log_history if "loss" in row]
    return {"reference": scored / (len(records) / args.batch), "loss": log[0]["loss"], "padding": log[0]["padding"]}


def run_trl(args: argparse.Namespace, model: Any, words: Any, records: list[Any], precompute: bool, steps: Any) -> Any:
    """DPOTrainer on the rows of L+ and L-, all rows of a step in one batch."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    def row(system: str, query: Any, chosen: str, rejected: str) -> dict[str, Any]:
        prompt = [{"role": "system", "content": system}, *(m.model_dump() for m in query)]
        return {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }

    rows = []
    for triple in records:
        rows.append(row(triple.system_good, triple.prompt, triple.chosen, triple.rejected))
        rows.append(row(triple.system_bad, triple.prompt, triple.original, triple.chosen))
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            folder, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.1], beta=0.1, learning_rate=5e-7,
            max_length=None, per_device_train_batch_size=2 * args.batch, num_train_epochs=1, report_to=[],
            save_strategy="no", logging_steps=1, precompute_ref_log_probs=precompute, use_cpu=args.device == "cpu",
            disable_tqdm=True,
            bf16=args.device == "cuda", activation_checkpointing=args.device == "cuda", warmup_steps=0.1,
        )  # fmt: skip
        frozen = copy.deepcopy(model)
        trainer = DPOTrainer(model, frozen, config, train_dataset=Dataset.from_list(rows), processing_class=words)
        trainer.add_callback(steps)
        trainer.train()
    return {"loss": next(r["loss"] for r in trainer.state.log_history if "loss" in r)}


def sizes(shape: str, vocabulary: int = 0) -> dict[str, int]:
    """A shape's sizes by name, with another vocabulary if given."""
    return {**dict(zip(SIZES, SHAPES[shape], strict=True)), **({"vocab_size": vocabulary} if vocabulary else {})}


def contend(args: argparse.Namespace) -> None:
    """One contender in this process; prints its figures as JSON."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = sizes(args.shapes[0], args.vocabulary)
    with torch.device(args.device):
        model = Qwen2ForCausalLM(Qwen2Config(**shape, max_position_embeddings=32_768, pad_token_id=0))
    model = model.to(torch.bfloat16 if args.device == "cuda" else torch.float32)
    words = tokenizer(shape["vocab_size"])
    records, steps = triples(args, shape["vocab_size"]), timer(args.device)
    who, _, variant = args.contender.partition(" ")
    if who == "ours":
        found = run_ours(args, model, words, records, variant, steps)
    else:
        found = run_trl(args, model, words, records, bool(variant), steps)
    counted = steps.steps[1:] or steps.steps
    found |= {"step": sum(counted) / len(counted), "steps": len(counted), **steps.calls}
    if args.device == "cuda":
        found["memory"] = torch.cuda.max_memory_allocated() / 2**30
    else:
        found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("FOUND " + json.dumps(found))


def floor(args: argparse.Namespace, shape: dict[str, Any]) -> tuple[float, float]:
    """FLOP that a step needs, and FLOP/s of a large matmul on this machine."""
    import torch

    from sso.objective import build
    from sso.packing import cost, tokenize
    from sso.train.settings import Training

    torch.set_num_threads(1)
    nodes = build(Training(objective="sso_v2")).nodes
    records = triples(args, shape["vocab_size"])
    samples = tokenize(records, tokenizer(shape["vocab_size"]), 1 << 20).samples
    tokens = sum(cost(s, nodes, "forest") for s in samples)
    scored = sum(len(s.responses[y]) for s in samples for _, y in nodes)
    width, head = shape["hidden_size"], shape["hidden_size"] // shape["num_attention_heads"]
    kv = head * shape["num_key_value_heads"]
    body = shape["num_hidden_layers"] * (2 * width * (width + kv) + 3 * width * shape["intermediate_size"])
    need = 6 * (body * tokens + shape["vocab_size"] * width * scored) / (len(samples) / args.batch)
    size, dtype = (8192, torch.bfloat16) if args.device == "cuda" else (1024, torch.float32)
    a = torch.randn(size, size, device=args.device, dtype=dtype)
    a @ a
    start = clock(args.device)
    for _ in range(10):
        a @ a
    return need, 10 * 2 * size**3 / (clock(args.device) - start)


def ask(args: argparse.Namespace, shape: str, contender: str, **changed: Any) -> dict[str, float]:
    """A contender's figures, from a process of its own."""
    given = {**vars(args), **changed}
    options = ["--contender", contender, "--shapes", shape, "--device", given["device"]]
    for name in ("samples", "batch", "tokens", "vocabulary"):
        options += [f"--{name}", str(given[name])]
    for name in ("system", "response"):
        options += [f"--{name}", *map(str, given[name])]
    done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True)
    line = next((text for text in done.stdout.splitlines() if text.startswith("FOUND ")), None)
    if line is None:
        raise RuntimeError(f"{contender} on {shape} failed:\n{done.stderr[-3000:]}")
    return json.loads(line.removeprefix("FOUND "))


def compare(args: argparse.Namespace, shape: str, tables: list[dict[str, Any]]) -> bool:
    """A Markdown table of all contenders on one shape, added to ``tables`` and so to ``--json``; whether all ran."""
    args = argparse.Namespace(**vars(args))
    args.samples = args.samples or STEPS.get(shape, (3, 5))[args.full] * args.batch
    contenders = args.contenders or (CONTENDERS if args.full or shape not in SLOW else SLOW[shape])
    if left_out := [name for name in CONTENDERS if name not in contenders and not args.contenders]:
        print(f"\n{shape}, left out without --full: {', '.join(left_out)}")
    need, rate = floor(args, sizes(shape))
    unit = "s" if args.device == "cuda" else "CPU-s"
    print(f"\n{shape}: floor {need / 1e9:,.0f} GFLOP a step, {need / rate:.3g} {unit} at {rate / 1e9:,.0f} GFLOP/s\n")
    heads = (f"{unit} a step", "of trl", "of the floor", "peak GiB", "first loss", "attention: calls", "shapes")
    heads = ("trainer", *heads, "products: shapes", "waits")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    rows: list[dict[str, Any]] = []
    tables.append({"shape": shape, "unit": unit, "flop_a_step": need, "flop_per_s": rate, "rows": rows})
    base = None
    for contender in contenders:
        try:
            found = ask(args, shape, contender)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            rows.append({"trainer": contender, "error": str(error)})
            keep(args, tables)
            continue
        if contender == contenders[0]:
            base = found["step"]
        rows.append({"trainer": contender, **found})
        keep(args, tables)
        of_first = f"{found['step'] / base:.3f}" if base else ""  # which may have failed
        cells = (f"{found['step']:.3g}", of_first, f"{found['step'] * rate / need:.2f}")
        cells += (f"{found['memory']:.2f}", f"{found['loss']:.5f}")
        cells += tuple(str(found.get(name, "")) for name in CALLS)
        print(f"| {contender} | {' | '.join(cells)} |", flush=True)
        if "reference" in found:
            print(f"| ... its reference, scored once | {found['reference']:.3g} |{' |' * (len(heads) - 2)}", flush=True)
    return not any("error" in row for row in rows)


def keep(args: argparse.Namespace, tables: list[dict[str, Any]]) -> None:
    """Write what was measured so far, whole or not at all."""
    if args.json:
        part = args.json.with_name(args.json.name + ".part")
        part.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")
        part.replace(args.json)


def growth(args: argparse.Namespace) -> None:
    """Cost a step of both layouts as one thing grows, all else as in the small shape."""
    args.samples = args.samples or 5 * args.batch
    changes: list[tuple[str, dict[str, Any]]] = [
        *((f"responses of {n}", {"response": [n, n]}) for n in (64, 128, 256, 512, 1024, 2048)),
        *((f"principles of {n}", {"system": [n, n]}) for n in (0, 128, 512, 1024)),
        *((f"vocabulary of {n:,}", {"vocabulary": n}) for n in (512, 8_192, 32_768, 151_936)),
        *((f"batches of {n}", {"batch": n, "samples": 5 * n}) for n in (1, 4, 16, 64)),
        *((f"micro-batches of {n:,} tokens", {"tokens": n}) for n in (1, 2_048, 8_192)),
    ]
    print(
        "| what | forest CPU-s a step | padded | forest/padded | forest GiB | padded GiB |\n|---|---|---|---|---|---|"
    )
    for what, change in changes:
        forest, padded = (ask(args, "0.5m", f"ours {layout}", **change) for layout in ("forest", "padded"))
        ratio = forest["step"] / padded["step"]
        cells = (f"{forest['step']:.3g}", f"{padded['step']:.3g}", f"{ratio:.2f}")
        print(f"| {what} | {' | '.join(cells)} | {forest['memory']:.2f} | {padded['memory']:.2f} |", flush=True)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5m", "42m"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--full", action="store_true", help="all contenders, and more steps")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="default: all that are quick, see --full")
    parser.add_argument("--samples", type=int, help="the first step is not counted, nor the last; default: see --full")
    parser.add_argument("--batch", type=int, default=4, help="samples a step")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a micro-batch of ours")
    parser.add_argument("--vocabulary", type=int, default=0, help="in place of the shape's")
    parser.add_argument("--system", nargs=2, type=int, default=[80, 160], help="tokens of a principle, least and most")
    parser.add_argument("--response", nargs=2, type=int, default=[40, 200], help="tokens of a response, least and most")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the figures there, after each contender (not --growth)")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        contend(args)
    elif args.growth:
        growth(args)
    else:
        tables: list[dict[str, Any]] = []
        ran = [compare(args, shape, tables) for shape in args.shapes]
        sys.exit(0 if all(ran) else 1)


if __name__ == "__main__":
    main()
