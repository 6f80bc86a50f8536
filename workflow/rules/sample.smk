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
        grid.engine_environment("sample")
    threads: grid.threads("sample")
    resources:
        gpu=grid.resource("sample", "gpu"),
        cpus_per_task=grid.resource("sample", "cpus_per_task"),
        nodes=grid.resource("sample", "nodes"),
        mem_mb=grid.resource("sample", "mem_mb"),
        runtime=grid.resource("sample", "runtime"),
    params:
        command=grid.command("sample", "sso.cli"),
        model=grid.param("sample", "model"),
        settings=grid.param("sample", "settings"),
        wrapper=grid.param("sample", "wrapper"),
        responses=grid.param("sample", "responses"),
        options=grid.param("sample", "options"),
    shell:
        "export SSO_GPUS={resources.gpu}; "
        "{params.command} sample --model {params.model:q} --principles {input.principles:q} --settings {params.settings:q}"
        " --wrapper {params.wrapper} --responses {params.responses} {params.options:q} --seed {wildcards.seed}"
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
    threads: grid.threads("pairs")
    resources:
        gpu=grid.resource("pairs", "gpu"),
        cpus_per_task=grid.resource("pairs", "cpus_per_task"),
        nodes=grid.resource("pairs", "nodes"),
        mem_mb=grid.resource("pairs", "mem_mb"),
        runtime=grid.resource("pairs", "runtime"),
    params:
        model=grid.param("pairs", "model"),
        kind=grid.param("pairs", "kind"),
        options=grid.param("pairs", "options"),
        scoring=grid.param("pairs", "scoring"),
    shell:
        "export SSO_GPUS={resources.gpu}; "
        "(sso pairs --triples {input.triples:q} --kind {params.kind} {params.options:q} --out {output.pairs:q} &&"
        " sso reference --model {params.model:q} --data {output.pairs:q} --objectives pairs"
        " --settings {params.scoring:q} --out {output.reference:q}) > {log:q} 2>&1"


# Pairs that a generator (or the starting model, over more queries than it drew triples for) samples; scored in the same process under the model that the policy starts from.
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
        grid.engine_environment("generated_pairs")
    threads: grid.threads("generated_pairs")
    resources:
        gpu=grid.resource("generated_pairs", "gpu"),
        cpus_per_task=grid.resource("generated_pairs", "cpus_per_task"),
        nodes=grid.resource("generated_pairs", "nodes"),
        mem_mb=grid.resource("generated_pairs", "mem_mb"),
        runtime=grid.resource("generated_pairs", "runtime"),
    params:
        command=grid.command("generated_pairs", "sso.cli"),
        generator=grid.param("generated_pairs", "generator"),
        model=grid.param("generated_pairs", "model"),
        settings=grid.param("generated_pairs", "settings"),
        wrapper=grid.param("generated_pairs", "wrapper"),
        scoring=grid.param("generated_pairs", "scoring"),
    shell:
        "export SSO_GPUS={resources.gpu}; "
        "{params.command} sample --model {params.generator:q} --principles {input.principles:q} --settings {params.settings:q}"
        " --wrapper {params.wrapper} --seed {wildcards.seed} --responses y+,y- --pairs good_bad"
        " --reference-model {params.model:q} --reference-settings {params.scoring:q}"
        " --reference-out {output.reference:q} --out {output.pairs:q} > {log:q} 2>&1"
