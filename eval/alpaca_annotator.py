"""AlpacaEval 2.0's annotations by the alpaca-eval package's own annotator, asked through our client.

The package does what makes the benchmark: the prompt, which output is shown first (seeded by the instruction), and
the preference from the first token's logprobs (`weighted_alpaca_eval_gpt4_turbo`). The client does the asking, so
that replies are cached one by one (the package's own cache is written every 128 items, in site-packages), limited
and paid within the budget. One deviation: the package puts texts into its ChatML template first and splits the whole
into messages after, so that an answer with `<|im_start|>` opens messages of its own, and `{output_2}` inside an
answer takes the other one's place. Here the template is split first; for texts without these the messages are equal.
"""

import logging
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

from eval.benchmarks.alpaca_eval import Row, aligned
from eval.endpoint_judge import EndpointJudge, Question
from eval.judge import to_json
from eval.statistics import mean_and_error
from sso.endpoint import Completion
from sso.errors import InputError
from sso.records import Answer, Message
from sso.untrusted import plain

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
FIELDS = ("instruction", "output_1", "output_2")
_BREAKOUT = re.compile(r'"""(?=\s*[,}])|"model_identifier"|^#+[ \t]*(?:Model Outputs|Task|Best Model Identifier)', re.M)
"""What would close an output or open a section of the annotator's prompt; a docstring's quotes are left alone."""


def harmless(text: str) -> str:
    """Text that cannot leave its place in the annotator's prompt; nearly every text is returned as it is."""
    return plain(_BREAKOUT.sub(lambda match: f"(quoted: {match[0].replace(chr(34), chr(39))})", text))


def messages(template: list[dict[str, str]], texts: dict[str, str]) -> list[dict[str, str]]:
    """The annotator's messages with ``texts`` (by field) in place, filled in one pass."""
    field = re.compile("|".join("{" + name + "}" for name in texts))
    return [{**m, "content": field.sub(lambda match: texts[match[0][1:-1]], m["content"])} for m in template]


def annotate(judge: EndpointJudge, answers: Sequence[Answer], references: Sequence[Answer], draw: int = 0) -> list[Row]:
    """Rows as `eval.benchmarks.alpaca_eval.pairwise` makes them, in the order of ``references``.

    A preference is None where the reply had no logprob of `m` or `M`, twice.

    Raises InputError where the endpoint gives no logprobs at all.
    """
    pairs = zip(aligned(answers, references), references, strict=True)
    rows = [{"instruction": _instruction(r), "output_1": r.output, "output_2": a.output} for a, r in pairs]
    level = logging.root.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package imports pkg_resources
        from alpaca_eval.annotators import PairwiseAnnotator

        logging.root.setLevel(logging.ERROR)  # the package logs every chunk, and every unreadable reply with its text
        try:
            annotated = _annotator(PairwiseAnnotator, judge, draw)(rows, chunksize=None)
        finally:
            logging.root.setLevel(level)
    preferences = {tuple(a[field] for field in FIELDS): a["preference"] for a in annotated}
    out = []
    for row, reference in zip(rows, references, strict=True):
        value = preferences[tuple(row[field] for field in FIELDS)]
        value = math.nan if value is None else float(value) - 1  # the package: 1 to 2
        lengths = {"length": len(row["output_2"]), "reference_length": len(row["output_1"])}
        out.append(
            {"id": reference.id, "preference": to_json(value), "score": None, "reference_score": None, **lengths}
        )
    return out


def _instruction(reference: Answer) -> str:
    if len(reference.prompt) != 1:
        raise InputError(f"reference {reference.id!r}: AlpacaEval's prompts are one user message; this has more.")
    return reference.prompt[0].content


def _annotator(kind: Any, judge: EndpointJudge, draw: int) -> Any:
    """The package's annotator with our way of making prompts and of asking; its cache is off, since ours keeps all."""
    from alpaca_eval.utils import prompt_to_chatml

    annotator = kind(annotators_config=ANNOTATOR, caching_path=None)
    (single,) = annotator.annotators.values()
    template = prompt_to_chatml(single.prompt_template)

    def make_prompts(frame: Any) -> tuple[list[Any], Any]:
        texts = frame[list(FIELDS)].to_dict("records")
        return [messages(template, {name: harmless(text) for name, text in row.items()}) for row in texts], frame

    def read(completion: Completion) -> dict[str, Any] | None:
        """The reply's first token as the package's parser takes it, where that finds a preference."""
        if completion.logprobs is None:
            raise InputError(
                f"{judge.name}: returns no logprobs, which AlpacaEval 2's annotator needs; use another endpoint."
            )
        first = {"logprobs": {"content": completion.logprobs[:1]}}
        return first if any(t["token"] in ("m", "M") for c in completion.logprobs[:1] for t in _top(c)) else None

    def ask(prompts: list[Any], model_name: str, **parameters: Any) -> dict[str, list[Any]]:
        questions = [Question([Message(**m) for m in prompt], read, parameters) for prompt in prompts]
        unreadable: dict[str, Any] = {"logprobs": {"content": [{"top_logprobs": []}]}}
        return {"completions_all": [found or unreadable for found in judge.ask(questions, draw)]}

    single._make_prompts, single.fn_completions = make_prompts, ask
    return annotator


def _top(token: dict[str, Any]) -> list[dict[str, Any]]:
    return token.get("top_logprobs") or []


def raw_win_rate(rows: Sequence[Row]) -> dict[str, Any]:
    """Raw win rate in percent, its standard error and n by the package's code; unreadable rows are left out, counted.

    Mean length is `mean_and_error` of the rows' `length`: characters, as on the leaderboard.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from alpaca_eval.metrics import get_winrate

    known = [{"preference": 1 + row["preference"]} for row in rows if row["preference"] is not None]
    if not known:
        return mean_and_error([row["preference"] for row in rows])
    found = get_winrate(known)
    out = {"value": float(found["win_rate"]), "stderr": float(found["standard_error"]), "n": int(found["n_total"])}
    return out if len(known) == len(rows) else out | {"unreadable": len(rows) - len(known)}
