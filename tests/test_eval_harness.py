"""The lm-eval tasks on a real, tiny, untrained model: right prompts, right scoring, offline."""

import importlib.metadata
import json
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from eval import harness, stock
from eval import sources as find_sources
from eval.settings import Evaluation, Mirror, Task
from sso.errors import InputError
from sso.sampling.settings import Vllm
from sso.settings import Backbone

QUESTIONS = {
    "gsm8k": {"question": "Tova has 3 apples. How many apples?", "answer": "3 plus 2 is 5. #### 5"},
    "math": {"problem": "Solve x plus 2 is 5.", "solution": "x is 3. \\boxed{3}"},
    "mmlu": {
        "subject": "home",
        "question": "Where does Tova live?",
        "choices": [f"Tova lives in {c}." for c in ("Oslo", "Rome", "Lima", "Bonn")],
        "answer": 1,
    },
    "mmlu_pro": {
        "question": "Where does Tova live?",
        "options": [f"Tova lives in {i}." for i in range(10)],
        "answer_index": 9,
        "category": "home",
    },
    "gpqa": {"question": "Where does the friend live?", "choices": ["a.", "b.", "c.", "d."], "answer": 0},
    "ifeval": {
        "key": 1,
        "prompt": "Tell 2 facts. End with Bye.",
        "instruction_id_list": ["startend:end_checker", "keywords:existence"],
        "kwargs": [{"end_phrase": "Bye."}, {"keywords": ["Tova"]}],
    },
}


@pytest.fixture(scope="module")
def tiny():
    from sso.worlds.micro.models import build

    model, tokenizer = build(Backbone(architecture="qwen2"), seed=0)
    return model.eval(), tokenizer


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, row in QUESTIONS.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    import socket

    def refuse(*_, **__):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def micro(*names: str, **keys) -> list[Task]:
    return [Task(name=f"micro_{name}", **keys) for name in names]


def find(tasks: list[Task], data: Path | None = None, **mirrors: Mirror) -> list[find_sources.Source]:
    return find_sources.find(Evaluation(tasks=tasks, mirrors=mirrors), data)


def run(sources: list[find_sources.Source], model, tokenizer, batch_size: int, max_new_tokens: int) -> dict:
    ready = [stock.build(source, max_new_tokens) for source in sources]
    results = harness.run(ready, harness.local(model, tokenizer, batch_size))
    for result in results.values():
        items = result.pop("items")
        assert {item["id"]: item["score"] for item in items} == result["samples"]
        assert all(len(item["doc"]) == 16 for item in items)
    return results


def test_every_micro_task_runs_offline_and_twice_the_same(tiny, data, no_network):
    sources = find(micro(*QUESTIONS), data)
    first = run(sources, *tiny, batch_size=8, max_new_tokens=8)
    assert list(first) == [f"micro_{name}" for name in QUESTIONS]
    for result in first.values():
        assert result["n"] == 2 and result["n_shot"] == 0 and result["truncated"] == 0
        assert list(result["samples"]) == ["0", "1"]
        assert result["value"] == pytest.approx(sum(result["samples"].values()) / 2)
    assert run(sources, *tiny, batch_size=3, max_new_tokens=8) == first


def test_an_option_is_scored_by_the_tokens_of_the_rendered_chat(tiny, data):
    """lm-eval encodes context and option jointly and cuts: that must give what the chat template gives."""
    import torch
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = tiny
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    source = find(micro("mmlu"), data)[0]
    user = {"role": "user", "content": QUESTIONS["mmlu"]["question"]}
    context = lm.apply_chat_template([user])
    likelihoods = []
    for choice in QUESTIONS["mmlu"]["choices"]:
        left, right = lm._encode_pair(context, choice)
        assert tokenizer.decode(left) == tokenizer.decode(tokenizer.encode(context))
        chat = tokenizer.apply_chat_template([user, {"role": "assistant", "content": choice}], return_dict=False)
        assert chat[: len(left) + len(right)] == left + right
        assert chat[len(left) + len(right) :] == [tokenizer.eos_token_id]
        with torch.no_grad():
            logp = model(torch.tensor([left + right])).logits[0].double().log_softmax(-1)
        likelihoods.append(sum(logp[len(left) - 1 + i, token].item() for i, token in enumerate(right)))
    best = max(range(4), key=likelihoods.__getitem__)
    row = {**source.rows[0], "answer": best}
    result = run([find_sources.Source(source.task, source.path, [row], [])], *tiny, 4, 8)
    assert result["micro_mmlu"]["value"] == 1.0


class Scripted:
    """Stands where a model would: lm-eval asks it, it says what the script says."""

    def __new__(cls, replies: dict[str, str]):
        from lm_eval.api.model import LM

        class Model(LM):
            tokenizer_name = "scripted"

            def generate_until(self, requests, disable_tqdm=False):
                return [next(reply for key, reply in replies.items() if key in r.args[0]) for r in requests]

            def apply_chat_template(self, history, add_generation_prompt=True):
                return history[-1]["content"]

            loglikelihood = loglikelihood_rolling = None

        return Model()


def scripted(task: str, rows: list[dict], replies: dict[str, str], shots: int | None = None) -> tuple[list, dict]:
    from lm_eval.evaluator import evaluate

    ready = stock.build(find_sources.Source(Task(name=task, num_fewshot=shots), Path("-"), rows, []), 8)
    out = evaluate(lm=Scripted(replies), task_dict={"tasks": ready.tasks}, bootstrap_iters=0, apply_chat_template=True)
    name = next(iter(ready.tasks))
    samples = sorted((s for s in out["samples"][name] if s["filter"] == ready.filter), key=lambda s: s["doc_id"])
    return ready.scores(samples), out["results"][name]


def test_gsm8k_reads_the_figure_after_the_marker():
    rows = [{"question": f"q{i}.", "answer": "#### 12"} for i in range(4)]
    replies = {"q0": "so 12. #### 12", "q1": "12", "q2": "#### 12.", "q3": "#### 13 #### 12"}
    assert scripted("micro_gsm8k", rows, replies)[0] == [1, 0, 1, 0]


def test_math_reads_the_last_box():
    rows = [{"problem": f"q{i}.", "solution": "x is 3. \\boxed{3}"} for i in range(5)]
    replies = {"q0": "\\boxed{4} no \\boxed{3}", "q1": "3", "q2": "\\boxed{3", "q3": "\\boxed{ 3 }", "q4": "\\fbox{3}"}
    assert scripted("micro_math", rows, replies)[0] == [1, 0, 0, 1, 0]


def test_ifeval_is_the_mean_of_its_four_accuracies():
    row = QUESTIONS["ifeval"]
    one = {**row, "prompt": "only", "instruction_id_list": row["instruction_id_list"][:1], "kwargs": row["kwargs"][:1]}
    rows = [{**row, "prompt": "both"}, {**row, "prompt": "half"}, one]
    # `only` ends with the phrase but for a star, which the loose check forgives.
    replies = {"both": "Tova rests. Bye.", "half": "Bye.", "only": "x Bye.* "}
    scores, metrics = scripted("micro_ifeval", rows, replies)
    four = [metrics[f"{level}_level_{kind}_acc,none"] for level in ("prompt", "inst") for kind in ("strict", "loose")]
    assert four == pytest.approx([1 / 3, 2 / 3, 3 / 5, 4 / 5])
    assert sum(scores) / 3 == pytest.approx(sum(four) / 4)


def test_bad_tasks_are_told_in_one_sentence(data):
    with pytest.raises(InputError, match=r"unknown task 'micro_gsm9k'; did you mean `micro_gsm8k`\?"):
        find(micro("gsm9k"), data)
    with pytest.raises(InputError, match="no such file"):
        find(micro("gsm8k", file=str(data / "none.jsonl")), data)
    (data / "math.jsonl").write_text('{"problem": "p"}\n')
    with pytest.raises(InputError, match=r"math.jsonl:1: lacks `solution`"):
        find(micro("math"), data)


def test_room_for_the_prompt_and_a_chat_template_are_asked_for(tiny, data):
    model, tokenizer = tiny
    sources = find(micro("gsm8k"), data)
    with pytest.raises(InputError, match="micro_gsm8k leave no room"):
        run(sources, model, tokenizer, 2, 10_000)
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(InputError, match="chat template"):
        run(sources, model, bare, 2, 8)


def test_a_checker_that_uses_nltk_gets_the_real_one():
    rows = [{"key": i, "prompt": f"q{i}.", "instruction_id_list": ["length_constraints:number_words"]} for i in (0, 1)]
    rows = [r | {"kwargs": [{"relation": "at least", "num_words": 3}]} for r in rows]
    scores, _ = scripted("micro_ifeval", rows, {"q0": "one two three", "q1": "one two"})
    assert scores == pytest.approx([1, 0])


# vLLM, by a stand-in of its package that says what lm-eval's own class asks of it.


@pytest.fixture
def asked_of_vllm(monkeypatch):
    """How many prompts each call of the stand-in's `generate` had, and vLLM's switches when it was loaded."""
    calls, switches = [], {}

    class LLM:
        def __init__(self, **arguments):
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(arguments["model"])
            switches.update({key: value for key, value in os.environ.items() if key.startswith("VLLM_")})
            about = {"max_model_len": 512, "hf_config": config, "try_get_generation_config": dict}
            self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(**about))

        def generate(self, prompts, sampling_params, use_tqdm, lora_request):
            calls.append(len(prompts))
            return [self.say(prompt["prompt_token_ids"]) for prompt in prompts]

        @staticmethod
        def say(ids):
            told = [None, *({token: -((7 * token + i) % 11) / 10} for i, token in enumerate(ids[1:]))]
            return SimpleNamespace(prompt_logprobs=told, outputs=[SimpleNamespace(text=f"It is {sum(ids) % 7}.")])

    def tokenizer(folder, **_):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)

    parts = {
        "vllm": {"LLM": LLM, "SamplingParams": SimpleNamespace, "TokensPrompt": dict},
        "vllm.lora.request": {"LoRARequest": None},
        "vllm.renderers.hf": {"resolve_chat_template": lambda tokenizer, **_: tokenizer.chat_template},
        "vllm.tokenizers": {"get_tokenizer": tokenizer},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: False)},
    }
    for name in ("vllm", "vllm.lora", "vllm.renderers", *parts):
        module = ModuleType(name)
        module.__spec__, module.__dict__["__path__"] = ModuleSpec(name, None), []
        vars(module).update(parts.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.32.0" if name == "vllm" else version(name))
    monkeypatch.delitem(sys.modules, "lm_eval.models.vllm_causallms", raising=False)
    yield calls, switches
    sys.modules.pop("lm_eval.models.vllm_causallms", None)


def test_vllm_is_asked_for_so_many_at_once_and_the_figures_do_not_depend_on_it(
    asked_of_vllm, tiny, data, tmp_path, monkeypatch
):
    calls, switches = asked_of_vllm
    folder = tmp_path / "model"
    for part in tiny:
        part.save_pretrained(folder)
    ready = [stock.build(source, 8) for source in find(micro("mmlu", "gsm8k"), data)]
    for key in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "VLLM_USE_FLASHINFER_SAMPLER"):
        monkeypatch.setenv(key, "")  # put back after the test, whatever is set in it
        monkeypatch.delenv(key)
    made = []
    for together in (3, harness.TOGETHER):
        monkeypatch.setattr(harness, "TOGETHER", together)
        made.append(harness.run(ready, harness.vllm(folder, "float32", Vllm())))
        assert max(calls) == min(together, 8) and sum(calls) == 2 * 4 + 2, calls  # 8 options, 2 replies
        calls.clear()
    assert made[0] == made[1] and made[0]["micro_mmlu"]["n"] == 2
    assert switches["VLLM_USE_FLASHINFER_SAMPLER"] == "0"  # its sampler is compiled, by nvcc
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "1")
    harness.vllm(folder, "float32", Vllm())
    assert switches["VLLM_USE_FLASHINFER_SAMPLER"] == "1"  # who sets it is heard
