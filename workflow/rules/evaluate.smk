# Answers (one process a model, all benchmarks), their judgement (no model in memory), and the pairs' quality.


rule evaluate:
    input:
        unpack(grid.inputs("evaluate")),
    output:
        directory(grid.pattern("evaluate")),
    log:
        grid.log("evaluate"),
    benchmark:
        grid.benchmark("evaluate")
    priority: grid.priority("evaluate")
    threads: grid.threads("evaluate")
    resources:
        gpu=grid.resource("evaluate", "gpu"),
        mem_mb=grid.resource("evaluate", "mem_mb"),
        runtime=grid.resource("evaluate", "runtime"),
    conda:
        grid.engine_environment("evaluate")
    params:
        command=grid.command("evaluate", "eval"),
        model=grid.param("evaluate", "model"),
        folder=grid.param("evaluate", "folder"),
        settings=grid.param("evaluate", "settings"),
    shell:
        "export SSO_GPUS={resources.gpu}; "
        "{params.command} answer --model {params.model:q} --data {params.folder:q} --settings {params.settings:q}"
        " --seed {wildcards.seed} --out {output:q} > {log:q} 2>&1"


rule judge:
    input:
        unpack(grid.inputs("judge")),
    output:
        directory(grid.pattern("judge")),
    log:
        grid.log("judge"),
    benchmark:
        grid.benchmark("judge")
    priority: grid.priority("judge")
    threads: grid.threads("judge")
    resources:
        gpu=grid.resource("judge", "gpu"),
        mem_mb=grid.resource("judge", "mem_mb"),
        runtime=grid.resource("judge", "runtime"),
    conda:
        grid.environment
    params:
        folder=grid.param("judge", "folder"),
        settings=grid.param("judge", "settings"),
        options=grid.param("judge", "options"),
    shell:
        "export SSO_GPUS={resources.gpu}; "
        "sso-eval judge --answers {input.answers:q} --data {params.folder:q} --settings {params.settings:q}"
        " {params.options:q} --seed {wildcards.seed} --out {output:q} > {log:q} 2>&1"


rule data_quality:
    input:
        unpack(grid.inputs("data_quality")),
    output:
        grid.pattern("data_quality"),
    log:
        grid.log("data_quality"),
    benchmark:
        grid.benchmark("data_quality")
    priority: grid.priority("data_quality")
    threads: grid.threads("data_quality")
    resources:
        gpu=grid.resource("data_quality", "gpu"),
        mem_mb=grid.resource("data_quality", "mem_mb"),
        runtime=grid.resource("data_quality", "runtime"),
    conda:
        grid.environment
    params:
        settings=grid.param("data_quality", "settings"),
        options=grid.param("data_quality", "options"),
    shell:
        "export SSO_GPUS={resources.gpu}; "
        "sso-eval pairs --pairs {input.pairs:q} --reference {input.reference:q} --settings {params.settings:q}"
        " {params.options:q} --out {output:q} > {log:q} 2>&1"
