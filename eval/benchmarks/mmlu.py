"""MMLU: four options a question, 57 subjects; by log-likelihood, or by reply where there are only replies."""

from eval.benchmarks.record import Column, LmEval, Load

COLUMNS = ("subject", "question", "choices", "answer")
MMLU = LmEval(
    "mmlu",
    stock="mmlu_{}",
    folder="mmlu/default",
    columns=COLUMNS,
    column=Column("MMLU"),
    load=Load(14042, 700, 0, scored=4),
    subject="subject",
    generative="real_mmlu_generative",
    micro=COLUMNS,
    micro_likelihoods=True,
)
MMLU_GENERATIVE = LmEval(
    "mmlu_generative",
    stock="mmlu_{}_generative",
    folder="mmlu/generative",
    columns=COLUMNS,
    column=Column("MMLU, by reply"),
    load=Load(14042, 700, 10),
    score="exact_match",
    filter="get_response",
    subject="subject",
    mirror="mmlu",
)
BENCHMARKS = (MMLU, MMLU_GENERATIVE)
