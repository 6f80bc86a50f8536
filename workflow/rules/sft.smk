# A tiny model from scratch, or a base model on dialogues; backbones that are ready have no such job.


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
