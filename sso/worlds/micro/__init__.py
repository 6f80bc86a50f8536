"""The micro-world: a procedural language, an exact oracle, a tokenizer and tiny models. Evidence about the
algorithm, never about 7B models."""
