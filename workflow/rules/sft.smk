# A tiny model from scratch, or a base model on dialogues; backbones that are ready have no such job.


rule sft:
    input:
        unpack(grid.inputs("sft")),
    output:
        directory(grid.pattern("sft")),
    log:
        grid.log("sft"),
    benchmark:
        grid.benchmark("sft")
    priority: grid.priority("sft")
    conda:
        grid.environment
    threads: grid.threads("sft")
    resources:
        gpu=grid.resource("sft", "gpu"),
        cpus_per_task=grid.resource("sft", "cpus_per_task"),
        nodes=grid.resource("sft", "nodes"),
        tasks=grid.resource("sft", "tasks"),
        mpi=grid.resource("sft", "mpi"),
        mem_mb=grid.resource("sft", "mem_mb"),
        runtime=grid.resource("sft", "runtime"),
    params:
        data=grid.param("sft", "data"),
        backbone=grid.param("sft", "backbone"),
        settings=grid.param("sft", "settings"),
    shell:
        "export SSO_GPUS={resources.gpu}; "
        "sso sft --data {params.data:q} --backbone {params.backbone:q} --settings {params.settings:q}"
        " --seed {wildcards.seed} --out {output:q} > {log:q} 2>&1"
