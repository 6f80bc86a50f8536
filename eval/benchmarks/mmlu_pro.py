"""MMLU-Pro: up to ten options a question, answered after reasoning; 14 subjects."""

from eval.benchmarks.record import Column, LmEval, Load

MMLU_PRO = LmEval(
    "mmlu_pro",
    stock="mmlu_pro_{}",
    folder="mmlu_pro",
    columns=("question", "options", "answer", "category"),
    column=Column("MMLU-Pro"),
    load=Load(12032, 1500, 400),
    score="exact_match",
    filter="custom-extract",
    subject="category",
    micro=("question", "options", "answer_index"),
    micro_likelihoods=True,
)
BENCHMARKS = (MMLU_PRO,)
