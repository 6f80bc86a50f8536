"""What `sso plan` predicts of a training step, of scoring and of decoding, against what they take, on one CPU core.

    python -m benchmarks.cost_model                       6 minutes

The machine is described by two rates measured here, of a large matmul and of reading a large matrix, and taken as
reached in full (`training_mfu` and `decoding_mbu` of 1): a prediction is then a floor, and if the model holds,
measured / predicted is one number for a stage, whatever the size. Random Qwen2 models in float32: 4 bytes a parameter
where the model counts bfloat16's 2, so it is given half the bandwidth.
"""

import argparse
import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.train_step import clock, run_ours, timer, tokenizer, triples
from sso.objective import build
from sso.records import Message
from sso.sampling.settings import Decoding
from sso.sampling.transformers_engine import TransformersEngine
from sso.train.settings import Training
from workflow.arithmetic import Arithmetic
from workflow.machine import this_machine
from workflow.shapes import Shape, shape

SHAPES = {
    "3m": (256, 768, 4),
    "19m": (512, 1536, 6),
    "100m": (1024, 3072, 8),
}
"""Width, width of the MLP, layers; 4 heads, 2 of keys."""
VOCABULARY, PROMPT, PRINCIPLE, RESPONSE, NEW = 4096, 40, 120, 120, 64


def measure(model: Qwen2ForCausalLM, words: object, samples: int) -> dict[str, float]:
    """CPU-seconds of what the prediction names."""
    steps = timer("cpu")
    args = argparse.Namespace(
        samples=samples, batch=4, tokens=8192, device="cpu", system=[PRINCIPLE] * 2, response=[RESPONSE] * 2
    )
    found = run_ours(args, model, words, triples(args, model.config.vocab_size), "forest", steps)
    took = {"reference scores": found["reference"], "training step": sum(steps.steps[1:]) / len(steps.steps[1:])}
    prompt = " ".join(f"w{i}" for i in range(PROMPT + PRINCIPLE))
    for rows in (1, 32):
        engine = TransformersEngine.of(model.eval(), words, rows)
        asked = [[Message(role="user", content=prompt)]] * rows
        engine.generate(asked, list(range(rows)), max_new_tokens=2)
        start = clock("cpu")
        drawn = engine.generate(asked, list(range(rows)), max_new_tokens=NEW)
        took[f"{rows} answers at once"] = clock("cpu") - start
        assert max(answer.tokens for answer in drawn) == NEW  # a batch takes as long as its longest
    return took


def predict(work: Arithmetic, size: Shape) -> dict[str, float]:
    """Seconds by the cost model."""
    training = Training(objective="sso_v2")
    tokens = 4 * work.sample_tokens(build(training).nodes)
    found = {"reference scores": 3600 * work.score(size, tokens, 1).hours}
    found["training step"] = 3600 * work.fit(size, training, tokens, 8192).hours
    for rows in (1, 32):
        decoding = Decoding(batch_size=rows)
        found[f"{rows} answers at once"] = 3600 * work.decode(size, decoding, rows, PROMPT + PRINCIPLE, NEW).hours
    return found


def main() -> None:
    """Entry point; prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--samples", type=int, default=16, help="4 a step; the first step is not counted")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lengths = {"prompt_tokens": PROMPT, "principle_tokens": PRINCIPLE, "response_tokens": RESPONSE}
    machine = this_machine(None).model_copy(update=lengths)
    rows = []
    for name in args.shapes:
        width, mlp, layers = SHAPES[name]
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=VOCABULARY,
                hidden_size=width,
                intermediate_size=mlp,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                pad_token_id=0,
                tie_word_embeddings=True,
            )
        )
        with tempfile.TemporaryDirectory() as folder:
            model.config.save_pretrained(folder)
            predicted = predict(Arithmetic(machine), shape(folder, {}))
        for what, seconds in measure(model, tokenizer(VOCABULARY), args.samples).items():
            numbers = (predicted[what], seconds, seconds / predicted[what])
            rows.append(f"| {name} | {what} | {' | '.join(f'{number:.3g}' for number in numbers)} |")
    print(f"\nmatmul {1e3 * machine.tflops:.0f} GFLOP/s, reading {2 * machine.bandwidth_gbs:.1f} GB/s\n")
    print("| model | what | predicted, s | measured, CPU-s | measured / predicted |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
