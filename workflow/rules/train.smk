# Preference training: the reference scores that generators share, generators, policies.


rule reference:
    input:
        unpack(ask.inputs("reference")),
    output:
        ask.output("reference"),
    log:
        ask.log("reference"),
    benchmark:
        ask.benchmark("reference")
    priority: ask.priority("reference")
    conda:
        ask.environment
    threads: ask.threads("reference")
    resources:
        **ask.resources("reference"),
    params:
        job=ask.mark("reference"),
        model=ask.param("reference", "model"),
        settings=ask.param("reference", "settings"),
    shell:
        "export SSO_GPUS={resources.gpu} SSO_JOB={params.job:q}; "
        "sso reference --model {params.model:q} --data {input.data:q} --settings {params.settings:q}"
        " --out {output:q} > {log:q} 2>&1"


rule generator:
    input:
        unpack(ask.inputs("generator")),
    output:
        directory(ask.output("generator")),
    log:
        ask.log("generator"),
    benchmark:
        ask.benchmark("generator")
    priority: ask.priority("generator")
    conda:
        ask.environment
    threads: ask.threads("generator")
    resources:
        **ask.resources("generator"),
    params:
        job=ask.mark("generator"),
        model=ask.param("generator", "model"),
        settings=ask.param("generator", "settings"),
        options=ask.param("generator", "options"),
    shell:
        "export SSO_GPUS={resources.gpu} SSO_JOB={params.job:q}; "
        "sso train --model {params.model:q} --data {input.data:q} --settings {params.settings:q} {params.options:q}"
        " --seed {wildcards.seed} --out {output:q} > {log:q} 2>&1"


rule policy:
    input:
        unpack(ask.inputs("policy")),
    output:
        directory(ask.output("policy")),
    log:
        ask.log("policy"),
    benchmark:
        ask.benchmark("policy")
    priority: ask.priority("policy")
    conda:
        ask.environment
    threads: ask.threads("policy")
    resources:
        **ask.resources("policy"),
    params:
        job=ask.mark("policy"),
        model=ask.param("policy", "model"),
        settings=ask.param("policy", "settings"),
        options=ask.param("policy", "options"),
    shell:
        "export SSO_GPUS={resources.gpu} SSO_JOB={params.job:q}; "
        "sso train --model {params.model:q} --data {input.data:q} --settings {params.settings:q} {params.options:q}"
        " --seed {wildcards.seed} --out {output:q} > {log:q} 2>&1"
