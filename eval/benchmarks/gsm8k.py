"""GSM8K: grade-school mathematics, the number after `####`."""

from eval.benchmarks.record import Column, LmEval, Load

GSM8K = LmEval(
    "gsm8k",
    stock="gsm8k",
    folder="gsm8k",
    columns=("question", "answer"),
    column=Column("GSM8K"),
    load=Load(1319, 900, 200),
    score="exact_match",
    filter="strict-match",
    micro=("question", "answer"),
)
BENCHMARKS = (GSM8K,)
