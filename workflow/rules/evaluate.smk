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
    conda:
        grid.engine_environment("evaluate")
    threads: grid.threads("evaluate")
    resources:
        gpu=grid.resource("evaluate", "gpu"),
        cpus_per_task=grid.resource("evaluate", "cpus_per_task"),
        nodes=grid.resource("evaluate", "nodes"),
        mem_mb=grid.resource("evaluate", "mem_mb"),
        runtime=grid.resource("evaluate", "runtime"),
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
        report(
            directory(grid.pattern("judge")),
            patterns=["{name}.json"],
            caption="../report/judge.rst",
            category="Scores",
            subcategory="{backbone}",
            labels={"run": "{run}", "seed": "{seed}"},
        ),
    log:
        grid.log("judge"),
    benchmark:
        grid.benchmark("judge")
    priority: grid.priority("judge")
    conda:
        grid.environment
    threads: grid.threads("judge")
    resources:
        gpu=grid.resource("judge", "gpu"),
        cpus_per_task=grid.resource("judge", "cpus_per_task"),
        nodes=grid.resource("judge", "nodes"),
        mem_mb=grid.resource("judge", "mem_mb"),
        runtime=grid.resource("judge", "runtime"),
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
        report(
            grid.pattern("data_quality"),
            caption="../report/data_quality.rst",
            category="Pairs",
            subcategory="{backbone}",
            labels={"arm": "{arm}", "seed": "{seed}"},
        ),
    log:
        grid.log("data_quality"),
    benchmark:
        grid.benchmark("data_quality")
    priority: grid.priority("data_quality")
    conda:
        grid.environment
    threads: grid.threads("data_quality")
    resources:
        gpu=grid.resource("data_quality", "gpu"),
        cpus_per_task=grid.resource("data_quality", "cpus_per_task"),
        nodes=grid.resource("data_quality", "nodes"),
        mem_mb=grid.resource("data_quality", "mem_mb"),
        runtime=grid.resource("data_quality", "runtime"),
    params:
        settings=grid.param("data_quality", "settings"),
        options=grid.param("data_quality", "options"),
    shell:
        "export SSO_GPUS={resources.gpu}; "
        "sso-eval pairs --pairs {input.pairs:q} --reference {input.reference:q} --settings {params.settings:q}"
        " {params.options:q} --out {output:q} > {log:q} 2>&1"
