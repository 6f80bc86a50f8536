"""MATH: competition mathematics by subject; four worked examples are part of the stock task (Minerva's)."""

from eval.benchmarks.record import Column, LmEval, Load

MATH = LmEval(
    "math",
    stock="minerva_math_{}",
    folder="minerva_math",
    columns=("problem", "solution"),
    column=Column("MATH"),
    load=Load(5000, 700, 350),
    score="math_verify",
    subject="type",
    subjects={
        "Algebra": "algebra",
        "Counting & Probability": "counting_and_prob",
        "Geometry": "geometry",
        "Intermediate Algebra": "intermediate_algebra",
        "Number Theory": "num_theory",
        "Prealgebra": "prealgebra",
        "Precalculus": "precalc",
    },
    first_subject="Algebra",  # all subjects have the same prompts
    own_examples=True,
    micro=("problem", "solution"),
)
BENCHMARKS = (MATH,)
