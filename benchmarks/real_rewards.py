"""A tiny reward model from scratch on real pairs: what comes out, with intervals.

    python benchmarks/real_rewards.py ../shared/data --out /tmp/real_rewards [--seeds 3]

Reads hh_rlhf (Anthropic's harmless-base test pairs) and llmbar from the folder that is given. The model is random and
as small as the micro-world's, with a byte-level BPE of the training texts: what it can learn from 2,000 pairs is
little, and nothing here says anything about reward models of real size. It shows that training, held-out accuracy and
scoring run on real text, beside two rules that read no word: the shorter response wins, and the longer.
"""

import argparse
import json
from pathlib import Path

from rewardbench.cli import main as rewardbench
from rewardbench.data import LLMBAR, comparison, read_bench, read_pairs
from rewardbench.train import split

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SETTINGS = {"learning_rate": 1e-3, "epochs": 3, "batch_size": 32, "max_length": 512, "tokens_per_batch": 16384}


def interval(wins: int, n: int) -> str:
    """Share in percent with Wilson's 95% interval."""
    z, p = 1.959964, wins / n
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return f"{100 * p:.1f} [{100 * low:.1f}, {100 * high:.1f}] of {n}"


def build(texts: list[str], out: Path, seed: int) -> None:
    """A random Qwen2 (width 64, 3 layers) with a tokenizer of 4,096 words."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    plain.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<|im_end|>", chat_template=TEMPLATE
    )
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Train and score with each seed; print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    source = args.data / "hh_rlhf/harmless-base-test.jsonl.gz"
    pairs = [comparison(pair) for pair in read_pairs(source).pairs]
    bench = read_bench(args.data / "llmbar")
    for name, rows in (("hh_rlhf, all", pairs), ("LLMBar, all", bench)):
        shorter = sum(len(row.chosen) < len(row.rejected) for row in rows)
        longer = sum(len(row.chosen) > len(row.rejected) for row in rows)
        print(f"{name}: shorter wins {interval(shorter, len(rows))}, longer wins {interval(longer, len(rows))}")
    wins = {"hh_rlhf, held out": [0, 0], **{subset: [0, 0] for subset in LLMBAR.values()}}
    for seed in range(args.seeds):
        folder = args.out / f"s{seed}"
        trained, _ = split(len(pairs), seed)
        build([text for i in trained for text in (pairs[i].chosen, pairs[i].rejected)], folder / "start", seed)
        train = ["train", "--model", folder / "start", "--pairs", source, "--settings", json.dumps(SETTINGS)]
        score = ["score", "--model", folder / "model", "--data", args.data / "llmbar", "--out", folder / "llmbar.json"]
        for command in ([*train, "--seed", seed, "--out", folder / "model"], score):
            if rewardbench([str(part) for part in command]):
                raise SystemExit(1)
        summary = json.loads((folder / "model.run.json").read_text())["summary"]
        held = int(summary["pairs_held_out"])
        found = {"hh_rlhf, held out": (round(held * summary["accuracy_held_out"]), held)}
        for subset, row in json.loads((folder / "llmbar.json").read_text())["subsets"].items():
            found[subset] = (round(row["accuracy"] * row["n"] / 100), row["n"])
        for name, (won, n) in found.items():
            wins[name] = [wins[name][0] + won, wins[name][1] + n]
        print(f"seed {seed}: trained pairs {summary['accuracy_train']:.3f}, too long {summary['pairs_too_long']:g}")
    for name, (won, n) in wins.items():
        print(f"{name}: {interval(won, n)} (rows of all seeds)")


if __name__ == "__main__":
    main()
