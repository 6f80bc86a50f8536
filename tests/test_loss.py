"""`sso loss` against sums made here from the model's own logits, and the DPO special case against trl."""

import json
import math

import pytest
import torch

from sso.cli import main
from sso.records import Pair, Triple, write
from sso.settings import Backbone
from sso.train.run import save
from sso.worlds.micro.models import build as build_model

TRIPLES = [
    Triple(
        id=f"t{i}",
        prompt=[{"role": "user", "content": f"Solve x plus {i} is {i + 7}."}],
        system_good="Be accurate and logical.",
        system_bad="Be inaccurate.",
        chosen=f"x is {i + 7} minus {i}. x is 7. " * (1 + i % 3),
        rejected=f"x is {i}.<|end|>",
        original="x is 7. Happy to help!",
    )
    for i in range(5)
]
SYSTEM = {"x": None, "x+": "system_good", "x-": "system_bad"}
RESPONSE = {"y+": "chosen", "y-": "rejected", "yo": "original"}


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    for name, seed in (("policy", 1), ("reference", 2)):
        save(*build_model(Backbone(architecture=request.param, layers=2), seed), path / name)
    write(path / "triples.jsonl", TRIPLES)
    return path


def printed(folder, capsys, *options):
    arguments = ["loss", "--policy", folder / "policy", "--reference", folder / "reference"]
    assert main([str(a) for a in [*arguments, "--triples", folder / "triples.jsonl", *options]]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def by_hand(folder, name, context, response, triple):
    """Sum of log-probabilities and token count, from one unpadded pass of the float64 model over rendered text."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / name)
    model = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float64)
    messages = [m.model_dump() for m in triple.prompt]
    if SYSTEM[context]:
        messages.insert(0, {"role": "system", "content": getattr(triple, SYSTEM[context])})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False).input_ids
    said = tokenizer(getattr(triple, RESPONSE[response]), add_special_tokens=False, split_special_tokens=True).input_ids
    said.append(tokenizer.eos_token_id)
    with torch.no_grad():
        logp = model(torch.tensor([prompt + said])).logits[0].log_softmax(-1)
    return sum(logp[len(prompt) - 1 + i, token].item() for i, token in enumerate(said)), len(said)


def softplus(z):
    return math.log1p(math.exp(-abs(z))) + max(z, 0.0)


def test_every_node_and_the_total_equal_float64_sums_over_rendered_text(folder, capsys):
    rows = printed(folder, capsys, "--objective", "sso_v2", "--dtype", "float64", "--gamma", "0.3", "--beta", "0.2")
    assert [row["id"] for row in rows] == [t.id for t in TRIPLES]
    for row, triple in zip(rows[:2], TRIPLES, strict=False):
        h = {}
        for context, response in (("x+", "y+"), ("x+", "y-"), ("x-", "yo"), ("x-", "y+")):
            found = row["logp"][f"{context}|{response}"]
            for name in ("policy", "reference"):
                expected, tokens = by_hand(folder, name, context, response, triple)
                assert found[name] == pytest.approx(expected, rel=1e-6) and found["tokens"] == tokens
            h[context, response] = found["policy"] - found["reference"]
        plus = softplus(-0.2 * (h["x+", "y+"] - h["x+", "y-"]))
        minus = softplus(-0.2 * (h["x-", "yo"] - h["x-", "y+"]))
        sft = [-row["logp"][n]["policy"] / row["logp"][n]["tokens"] for n in ("x+|y+", "x-|yo")]
        assert row["loss"] == pytest.approx(plus + minus + 0.3 * sum(sft), rel=1e-9)
        assert row["weight"] is None
        assert [(c["base_loss"], c["sft_term"]) for c in row["contrasts"]] == [
            (pytest.approx(plus), pytest.approx(sft[0])),
            (pytest.approx(minus), pytest.approx(sft[1])),
        ]


@pytest.mark.parametrize("objective", ["l_plus", "l_minus", "l_minus_naive", "sso_v1", "pairs"])
def test_layouts_print_the_same_and_terms_make_the_total(folder, capsys, objective):
    options = ["--objective", objective, "--base", "ipo", "--dtype", "float64"]
    forest = printed(folder, capsys, *options, "--layout", "forest")
    padded = printed(folder, capsys, *options, "--layout", "padded")
    for a, b in zip(forest, padded, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-9)
        total = sum(
            (a["weight"] if c["on_policy_weight"] else 1)
            * c["weight"]
            * (c["base_loss"] + c["sft_weight"] * c["sft_term"])
            for c in a["contrasts"]
        )
        assert a["loss"] == pytest.approx(total, rel=1e-12)
        if objective == "sso_v1":
            averages = [a["logp"][n]["policy"] / a["logp"][n]["tokens"] for n in ("x|y+", "x|y-")]
            assert a["weight"] == pytest.approx(1 / (1 + math.exp(sum(averages) / 2)), rel=1e-9)


@pytest.mark.parametrize("base", ["hinge", "orpo", "simpo"])
def test_every_base_loss_runs_in_float32(folder, capsys, base):
    wide = printed(folder, capsys, "--objective", "sso_v2", "--base", base, "--dtype", "float64")
    narrow = printed(folder, capsys, "--objective", "sso_v2", "--base", base)
    assert [r["loss"] for r in narrow] == pytest.approx([r["loss"] for r in wide], rel=1e-4)


def test_bad_input_is_one_sentence(folder, capsys, tmp_path):
    write(tmp_path / "pairs.jsonl", [Pair(id="p", prompt="x", chosen="x is 1.", rejected="x is 2.")])
    start = ["loss", "--policy", str(folder / "policy"), "--reference", str(folder / "reference")]
    cases = {
        "a pair has no y+ in x+; this objective needs triples": [
            str(tmp_path / "pairs.jsonl"),
            "--objective",
            "sso_v2",
        ],
        "unknown objective 'v3'": [str(folder / "triples.jsonl"), "--objective", "v3"],
        "--base-loss: input should be": [str(folder / "triples.jsonl"), "--objective", "sso_v2", "--base-loss", "kto"],
        "fills all of max_length 9": [str(folder / "triples.jsonl"), "--objective", "pairs", "--max-length", "9"],
    }
    for sentence, options in cases.items():
        assert main([*start, "--triples", *options]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and sentence in captured.err.splitlines()[-1]


def test_what_is_cut_or_left_out_is_said_and_the_rest_is_scored(folder, capsys):
    start = ["loss", "--policy", str(folder / "policy"), "--reference", str(folder / "reference")]
    full = printed(folder, capsys, "--objective", "pairs")
    assert main([*start, "--triples", str(folder / "triples.jsonl"), "--objective", "pairs", "--max-length", "30"]) == 0
    captured = capsys.readouterr()
    cut = [json.loads(line) for line in captured.out.splitlines()]
    assert "records with a response cut to fit max_length 30" in captured.err
    assert all(a["logp"]["x|y+"]["tokens"] <= b["logp"]["x|y+"]["tokens"] for a, b in zip(cut, full, strict=True))
    assert cut[2]["logp"]["x|y+"]["tokens"] < full[2]["logp"]["x|y+"]["tokens"]


def test_dpo_on_pairs_is_trl_dpo_in_loss_and_gradient(tmp_path):
    pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from sso import reference
    from sso.objective import build
    from sso.packing import tokenize
    from sso.train.preference import fit
    from sso.train.run import training_arguments
    from sso.train.settings import Training

    policy, tokenizer = build_model(Backbone(architecture="llama", layers=2), 1)
    frozen, _ = build_model(Backbone(architecture="llama", layers=2), 2)
    pairs = [Pair(id=t.id, prompt=t.prompt, chosen=t.chosen, rejected=f"x is {t.id[1:]}.") for t in TRIPLES]

    # What trl makes of the same conversations, its chat template rendering included.
    rows = [p.model_dump(include={"prompt", "chosen", "rejected"}) for p in pairs]
    arguments = DPOConfig(
        str(tmp_path), per_device_train_batch_size=5, beta=0.1, report_to=[], bf16=False, use_cpu=True
    )
    trl = DPOTrainer(policy, frozen, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    policy.eval()
    loss = trl.compute_loss(policy, trl._prepare_inputs(next(iter(trl.get_train_dataloader()))))
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in policy.parameters()])
    policy.zero_grad()

    objective = build(
        Training(objective="pairs", dtype="float32", batch_size=5, learning_rates=[1e-9], max_grad_norm=0)
    )
    samples = tokenize(pairs, tokenizer, 256).samples
    scores = reference.score(frozen, samples, objective.nodes, tokenizer.pad_token_id, {"dtype": "float32"})
    found = []

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            found.append(torch.cat([p.grad.flatten().clone() for p in policy.parameters()]))

    arguments = training_arguments(objective.training, 0.0, 0, tmp_path)
    done = fit(policy, tokenizer, samples, scores, objective, arguments, callbacks=[Gradients()])
    assert done.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert (found[0] - expected).norm() <= 1e-5 * expected.norm()
