# What the models say: triples of a policy, and the pairs that policies train on with their reference scores.


rule sample:
    input:
        unpack(ask.inputs("sample")),
    output:
        ask.output("sample"),
    log:
        ask.log("sample"),
    benchmark:
        ask.benchmark("sample")
    priority: ask.priority("sample")
    conda:
        ask.engine_environment("sample")
    threads: ask.threads("sample")
    resources:
        **ask.resources("sample"),
    params:
        job=ask.mark("sample"),
        command=ask.command("sample", "sso.cli"),
        model=ask.param("sample", "model"),
        settings=ask.param("sample", "settings"),
        wrapper=ask.param("sample", "wrapper"),
        responses=ask.param("sample", "responses"),
        options=ask.param("sample", "options"),
    shell:
        "export SSO_GPUS={resources.gpu} SSO_JOB={params.job:q}; "
        "{params.command} sample --model {params.model:q} --principles {input.principles:q} --settings {params.settings:q}"
        " --wrapper {params.wrapper} --responses {params.responses} {params.options:q} --seed {wildcards.seed}"
        " --out {output:q} > {log:q} 2>&1"


# Pairs made of the starting model's own triples.
rule pairs:
    input:
        unpack(ask.inputs("pairs")),
    output:
        pairs=ask.output("pairs"),
        reference=ask.output("pairs_reference"),
    log:
        ask.log("pairs"),
    benchmark:
        ask.benchmark("pairs")
    wildcard_constraints:
        arm=ask.names("pairs", "arm"),
    priority: ask.priority("pairs")
    conda:
        ask.environment
    threads: ask.threads("pairs")
    resources:
        **ask.resources("pairs"),
    params:
        job=ask.mark("pairs"),
        model=ask.param("pairs", "model"),
        kind=ask.param("pairs", "kind"),
        options=ask.param("pairs", "options"),
        scoring=ask.param("pairs", "scoring"),
    shell:
        "export SSO_GPUS={resources.gpu} SSO_JOB={params.job:q}; "
        "(sso pairs --triples {input.triples:q} --kind {params.kind} {params.options:q} --out {output.pairs:q} &&"
        " sso reference --model {params.model:q} --data {output.pairs:q} --objectives pairs"
        " --settings {params.scoring:q} --out {output.reference:q}) > {log:q} 2>&1"


# Pairs that a generator (or the starting model, over more queries than it drew triples for) samples; scored under the model that the policy starts from, by processes of their own: vLLM keeps its GPU memory as long as it lives.
rule generated_pairs:
    input:
        unpack(ask.inputs("generated_pairs")),
    output:
        pairs=ask.output("pairs"),
        reference=ask.output("pairs_reference"),
    log:
        ask.log("pairs"),
    benchmark:
        ask.benchmark("pairs")
    wildcard_constraints:
        arm=ask.names("generated_pairs", "arm"),
    priority: ask.priority("generated_pairs")
    conda:
        ask.engine_environment("generated_pairs")
    threads: ask.threads("generated_pairs")
    resources:
        **ask.resources("generated_pairs"),
    params:
        job=ask.mark("generated_pairs"),
        command=ask.command("generated_pairs", "sso.cli"),
        generator=ask.param("generated_pairs", "generator"),
        model=ask.param("generated_pairs", "model"),
        settings=ask.param("generated_pairs", "settings"),
        wrapper=ask.param("generated_pairs", "wrapper"),
        scoring=ask.param("generated_pairs", "scoring"),
    shell:
        "export SSO_GPUS={resources.gpu} SSO_JOB={params.job:q}; "
        "({params.command} sample --model {params.generator:q} --principles {input.principles:q} --settings {params.settings:q}"
        " --wrapper {params.wrapper} --seed {wildcards.seed} --responses y+,y- --pairs good_bad --out {output.pairs:q} &&"
        " {params.command} reference --model {params.model:q} --data {output.pairs:q} --objectives pairs"
        " --settings {params.scoring:q} --out {output.reference:q}) > {log:q} 2>&1"
