# A good and a bad guideline for every query.


rule principles:
    input:
        unpack(grid.inputs("principles")),
    output:
        grid.pattern("principles"),
    log:
        grid.log("principles"),
    benchmark:
        grid.benchmark("principles")
    priority: grid.priority("principles")
    conda:
        grid.engine_environment("principles")
    threads: grid.threads("principles")
    resources:
        gpu=grid.resource("principles", "gpu"),
        cpus_per_task=grid.resource("principles", "cpus_per_task"),
        nodes=grid.resource("principles", "nodes"),
        mem_mb=grid.resource("principles", "mem_mb"),
        runtime=grid.resource("principles", "runtime"),
    params:
        command=grid.command("principles", "sso.cli"),
        version=grid.param("principles", "version"),
        settings=grid.param("principles", "settings"),
        options=grid.param("principles", "options"),
        seed=grid.param("principles", "seed"),
    shell:
        "export SSO_GPUS={resources.gpu}; "
        "{params.command} principles --queries {input.queries:q} --version {params.version} --settings {params.settings:q}"
        " {params.options:q} --seed {params.seed} --out {output:q} > {log:q} 2>&1"
