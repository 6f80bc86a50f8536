"""Model and dataset cards in the hub's format, made of a job's record.

A card tells what made the thing, of what, with which settings and with what figures. It holds no times, no absolute
paths and no text of prompts, so the same job writes the same bytes. The licence is taken from the cards of what
went in; where none states one it is "unknown", which is for people to settle before they publish.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sso.records import write_text

MODELS = {
    "convert": "Weights that a package of a package index carries as a GGUF file, as a plain checkpoint.",
    "sft": "A model that arms start from: tiny and trained from scratch, or a base model fine-tuned on dialogues.",
    "train": "A policy or a data generator, trained on preferences.",
    "reward": "A reward model: one label, the score of a conversation's last token.",
}
DATASETS = {
    "sample": "Responses that a model gave under good guidelines, under bad ones, and under none.",
    "pairs": "Preference pairs out of such responses.",
    "export": "Preference pairs in the hub's conversational format.",
}
"""What is told of the outputs of each stage (`sso.jobs.tracking.run`); other stages get no card."""
PARQUET = "data/train-00000-of-00001.parquet"
GENERATE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its name on the hub
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
messages = [{"role": "user", "content": "Tell me about Tom."}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
reply = model.generate(**prompt, max_new_tokens=64, do_sample=False)[0, prompt["input_ids"].shape[1] :]
print(tokenizer.decode(reply, skip_special_tokens=True))
"""
REWARD = """\
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "."  # this folder, or its name on the hub
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
messages = [{"role": "user", "content": "Tell me about Tom."}, {"role": "assistant", "content": "Tom is a nurse."}]
text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\\n")
print(model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits.item())
"""
"""How a checkpoint is used with transformers alone; tests run them."""
LICENCE = ("license", "license_name", "license_link")
SOURCE = "https://arxiv.org/abs/2410.17131"


def path_of(out: str | Path) -> Path:
    """Where the card of an output lies: README.md in a folder; `<file>.card.md` beside a file, which has neighbours."""
    out = Path(out)
    return out / "README.md" if out.is_dir() else out.with_name(f"{out.name}.card.md")


def write(out: str | Path, record: Mapping[str, Any]) -> None:
    """Write the card of a finished job's output, where its stage is one that has cards."""
    out = Path(out)
    if record["stage"] not in MODELS | DATASETS or not out.exists():
        return
    make = _model if record["stage"] in MODELS else _dataset
    write_text(path_of(out), f"---\n{make(out, record).to_yaml()}\n---\n\n{_body(out, record)}")


def header_of(path: str | Path) -> dict[str, Any]:
    """The YAML header of the card of a file or folder; {} where there is no readable card."""
    from huggingface_hub import RepoCard
    from yaml import YAMLError

    try:
        return RepoCard.load(path_of(path), ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, YAMLError):
        return {}


def _inherited(record: Mapping[str, Any]) -> dict[str, Any]:
    """Licence fields, and the model that stands at the beginning, by the work itself or the cards of the inputs."""
    if record["stage"] == "sft" and record["settings"].get("architecture"):
        return {"license": "apache-2.0"}  # the micro-world's data is this project's
    found: dict[str, Any] = {**record.get("card", {})}
    for name, (path, _) in record["inputs"].items():
        there = Path(path).exists()
        header = header_of(path) if there else {}
        if isinstance(header.get("license"), str) and "license" not in found:
            found |= {key: header[key] for key in LICENCE if isinstance(header.get(key), str)}
        base = header.get("base_model") if there else path
        if name == "model" and isinstance(base, str):
            found["base_model"] = base
    return {"license": "unknown"} | found


def _model(out: Path, record: Mapping[str, Any]) -> Any:
    from huggingface_hub import ModelCardData

    reward = record["stage"] == "reward"
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification" if reward else "text-generation",
        tags=["sso", *(["reward-model"] if reward else []), *_method(record)],
        **_inherited(record),
    )


def _dataset(out: Path, record: Mapping[str, Any]) -> Any:
    from huggingface_hub import DatasetCardData

    if out.is_dir():
        rows, files = int(record["summary"]["pairs"]), PARQUET
    else:
        with out.open("rb") as lines:
            rows, files = sum(1 for _ in lines), out.name
    inherited = {key: value for key, value in _inherited(record).items() if key != "base_model"}
    return DatasetCardData(
        pretty_name=out.stem,
        tags=["sso", "preference", "synthetic"],
        size_categories=_size(rows),
        configs=[{"config_name": "default", "data_files": files}],
        **inherited,
    )


def _size(rows: int) -> str:
    """The hub's name for a number of rows."""
    bounds = [("n<1K", 1e3), ("1K<n<10K", 1e4), ("10K<n<100K", 1e5), ("100K<n<1M", 1e6)]
    return next((name for name, bound in bounds if rows < bound), "1M<n<10M")


def _method(record: Mapping[str, Any]) -> list[str]:
    settings = record["settings"]
    return [str(settings[key]) for key in ("objective", "base_loss") if key in settings]


def _code(text: Any) -> str:
    """Text as inline code in a table cell: nothing in it is markup."""
    return "`" + " ".join(str(text).replace("`", "'").replace("|", "/").split()) + "`"


def _place(path: str) -> str:
    """An input's name: of what is on disk the last two parts, since the rest is this machine's."""
    return "/".join(Path(path).parts[-2:])


def _body(out: Path, record: Mapping[str, Any]) -> str:
    stage = record["stage"]
    lines = [
        f"# {_code(out.stem)}",
        "",
        (MODELS | DATASETS)[stage],
        f"Made by `{stage}` of the reproduction suite for [Self-Steering Optimization]({SOURCE}).",
        "",
        *(["## Use", "", f"```python\n{REWARD if stage == 'reward' else GENERATE}```", ""] if stage in MODELS else []),
        "## Made from",
        "",
        "| input | name | digest (sha256, 16 digits) |",
        "|---|---|---|",
        *(
            f"| {name} | {_code(_place(path))} | {sha or 'not local'} |"
            for name, (path, sha) in record["inputs"].items()
        ),
        f"| seed | {_code(record['seed'])} | |",
    ]
    if not out.is_dir():
        lines += [f"| this file | {_code(out.name)} | {record['output'][1]} |"]
    if record["summary"]:
        lines += ["", "## Figures", "", "| figure | value |", "|---|---|"]
        lines += [f"| {_code(name)} | {value} |" for name, value in record["summary"].items()]
    # JSON keeps line breaks inside strings escaped, so no text in it ends the block.
    settings = json.dumps(record["settings"], indent=1, ensure_ascii=False, sort_keys=True)
    lines += ["", "## Settings", "", "```json", settings, "```", ""]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join([*lines, f"Versions: {versions}.", ""])
