# A tiny model from scratch; backbones that are checkpoints have no such job.


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
    params:
        backbone=grid.param("sft", "backbone"),
        settings=grid.param("sft", "settings"),
    shell:
        "sso sft --data {input.data:q} --backbone {params.backbone:q} --settings {params.settings:q}"
        " --seed {wildcards.seed} --out {output:q} > {log:q} 2>&1"
