# Answers (one process a model, all benchmarks), their judgement (no model in memory), and the pairs' quality.


rule answer:
    input:
        unpack(ask.inputs("answer")),
    output:
        directory(ask.output("answer")),
    log:
        ask.log("answer"),
    benchmark:
        ask.benchmark("answer")
    priority: ask.priority("answer")
    conda:
        ask.engine_environment("answer")
    threads: ask.threads("answer")
    resources:
        **ask.resources("answer"),
    params:
        job=ask.mark("answer"),
        command=ask.command("answer", "eval"),
        model=ask.param("answer", "model"),
        folder=ask.param("answer", "folder"),
        settings=ask.param("answer", "settings"),
    shell:
        "export SSO_GPUS={resources.gpu} SSO_JOB={params.job:q}; "
        "{params.command} answer --model {params.model:q} --data {params.folder:q} --settings {params.settings:q}"
        " --seed {wildcards.seed} --out {output:q} > {log:q} 2>&1"


rule judge:
    input:
        unpack(ask.inputs("judge")),
    output:
        report(
            directory(ask.output("judge")),
            patterns=["{name}.json"],
            caption="../report/judge.rst",
            category="Scores",
            subcategory="{backbone}",
            labels={"run": "{run}", "seed": "{seed}"},
        ),
    log:
        ask.log("judge"),
    benchmark:
        ask.benchmark("judge")
    priority: ask.priority("judge")
    conda:
        ask.environment
    threads: ask.threads("judge")
    resources:
        **ask.resources("judge"),
    params:
        job=ask.mark("judge"),
        folder=ask.param("judge", "folder"),
        settings=ask.param("judge", "settings"),
        options=ask.param("judge", "options"),
    shell:
        "export SSO_GPUS={resources.gpu} SSO_JOB={params.job:q}; "
        "sso-eval judge --answers {input.answers:q} --data {params.folder:q} --settings {params.settings:q}"
        " {params.options:q} --seed {wildcards.seed} --out {output:q} > {log:q} 2>&1"


rule data_quality:
    input:
        unpack(ask.inputs("data_quality")),
    output:
        report(
            ask.output("data_quality"),
            caption="../report/data_quality.rst",
            category="Pairs",
            subcategory="{backbone}",
            labels={"arm": "{arm}", "seed": "{seed}"},
        ),
    log:
        ask.log("data_quality"),
    benchmark:
        ask.benchmark("data_quality")
    priority: ask.priority("data_quality")
    conda:
        ask.environment
    threads: ask.threads("data_quality")
    resources:
        **ask.resources("data_quality"),
    params:
        job=ask.mark("data_quality"),
        settings=ask.param("data_quality", "settings"),
        options=ask.param("data_quality", "options"),
    shell:
        "export SSO_GPUS={resources.gpu} SSO_JOB={params.job:q}; "
        "sso-eval data-quality --pairs {input.pairs:q} --reference {input.reference:q} --settings {params.settings:q}"
        " {params.options:q} --out {output:q} > {log:q} 2>&1"
