# A good and a bad guideline for every query.


rule principles:
    input:
        unpack(ask.inputs("principles")),
    output:
        ask.output("principles"),
    log:
        ask.log("principles"),
    benchmark:
        ask.benchmark("principles")
    priority: ask.priority("principles")
    conda:
        ask.engine_environment("principles")
    threads: ask.threads("principles")
    resources:
        **ask.resources("principles"),
    params:
        job=ask.mark("principles"),
        command=ask.command("principles", "sso.cli"),
        version=ask.param("principles", "version"),
        settings=ask.param("principles", "settings"),
        options=ask.param("principles", "options"),
        seed=ask.param("principles", "seed"),
    shell:
        "export SSO_GPUS={resources.gpu} SSO_JOB={params.job:q}; "
        "{params.command} principles --queries {input.queries:q} --version {params.version} --settings {params.settings:q}"
        " {params.options:q} --seed {params.seed} --out {output:q} > {log:q} 2>&1"
