"""GPQA (diamond): four options a question, in an order drawn by lm-eval; by log-likelihood, or after reasoning."""

from eval.benchmarks.record import Column, LmEval, Load

COLUMNS = ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
GPQA = LmEval(
    "gpqa",
    stock="gpqa_diamond_zeroshot",
    folder="gpqa/zeroshot",
    columns=COLUMNS,
    column=Column("GPQA"),
    load=Load(198, 250, 0, scored=4),
    generative="real_gpqa_cot",
    micro=("question", "choices", "answer"),
    micro_likelihoods=True,
)
GPQA_COT = LmEval(
    "gpqa_cot",
    stock="gpqa_diamond_cot_zeroshot",
    folder="gpqa/cot_zeroshot",
    columns=COLUMNS,
    column=Column("GPQA, by reply"),
    load=Load(198, 250, 700),
    score="exact_match",
    filter="flexible-extract",
    mirror="gpqa",
)
BENCHMARKS = (GPQA, GPQA_COT)
