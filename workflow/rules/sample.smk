# What the models say: triples of a policy, and the pairs that policies train on with their reference scores.


rule sample:
    input:
        unpack(grid.inputs("sample")),
    output:
        grid.pattern("sample"),
    log:
        grid.log("sample"),
    benchmark:
        grid.benchmark("sample")
    priority: grid.priority("sample")
    conda:
        grid.environment
    params:
        model=grid.param("sample", "model"),
        settings=grid.param("sample", "settings"),
        wrapper=grid.param("sample", "wrapper"),
        responses=grid.param("sample", "responses"),
    shell:
        "sso sample --model {params.model:q} --principles {input.principles:q} --settings {params.settings:q}"
        " --wrapper {params.wrapper} --responses {params.responses} --seed {wildcards.seed}"
        " --out {output:q} > {log:q} 2>&1"


# Pairs made of the starting model's own triples.
rule pairs:
    input:
        unpack(grid.inputs("pairs")),
    output:
        pairs=grid.pattern("pairs"),
        reference=grid.pattern("pairs_reference"),
    log:
        grid.log("pairs"),
    benchmark:
        grid.benchmark("pairs")
    wildcard_constraints:
        arm=grid.names("pairs", "arm"),
    priority: grid.priority("pairs")
    conda:
        grid.environment
    params:
        model=grid.param("pairs", "model"),
        kind=grid.param("pairs", "kind"),
        options=grid.param("pairs", "options"),
        scoring=grid.param("pairs", "scoring"),
    shell:
        "(sso pairs --triples {input.triples:q} --kind {params.kind} {params.options:q} --out {output.pairs:q} &&"
        " sso reference --model {params.model:q} --data {output.pairs:q} --objectives pairs"
        " --settings {params.scoring:q} --out {output.reference:q}) > {log:q} 2>&1"


# Pairs that a generator samples; scored in the same process under the model that the policy starts from.
rule generated_pairs:
    input:
        unpack(grid.inputs("generated_pairs")),
    output:
        pairs=grid.pattern("pairs"),
        reference=grid.pattern("pairs_reference"),
    log:
        grid.log("pairs"),
    benchmark:
        grid.benchmark("pairs")
    wildcard_constraints:
        arm=grid.names("generated_pairs", "arm"),
    priority: grid.priority("generated_pairs")
    conda:
        grid.environment
    params:
        model=grid.param("generated_pairs", "model"),
        settings=grid.param("generated_pairs", "settings"),
        wrapper=grid.param("generated_pairs", "wrapper"),
        scoring=grid.param("generated_pairs", "scoring"),
    shell:
        "sso sample --model {input.generator:q} --principles {input.principles:q} --settings {params.settings:q}"
        " --wrapper {params.wrapper} --seed {wildcards.seed} --responses y+,y- --pairs good_bad"
        " --reference-model {params.model:q} --reference-settings {params.scoring:q}"
        " --reference-out {output.reference:q} --out {output.pairs:q} > {log:q} 2>&1"
