# The experiment as it was resolved, the micro-world's files (or real queries and benchmarks), annotated pairs.


rule config:
    output:
        ask.output("config"),
    log:
        ask.log("config"),
    benchmark:
        ask.benchmark("config")
    conda:
        ask.environment
    params:
        experiment=ask.param("config", "experiment"),
    shell:
        "printf '%s\\n' {params.experiment:q} > {output:q} 2> {log:q}"


rule data:
    input:
        unpack(ask.inputs("data")),
    output:
        **ask.data_files,
    log:
        ask.log("data"),
    benchmark:
        ask.benchmark("data")
    priority: ask.priority("data")
    conda:
        ask.environment
    params:
        job=ask.mark("data"),
        settings=ask.param("data", "settings"),
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "export SSO_JOB={params.job:q}; "
        "sso data --settings {params.settings:q} --out {params.folder:q} > {log:q} 2>&1"


rule preferences:
    input:
        unpack(ask.inputs("preferences")),
    output:
        ask.output("preferences"),
    log:
        ask.log("preferences"),
    benchmark:
        ask.benchmark("preferences")
    priority: ask.priority("preferences")
    conda:
        ask.environment
    params:
        job=ask.mark("preferences"),
        settings=ask.param("preferences", "settings"),
        part=ask.param("preferences", "part"),
    shell:
        "export SSO_JOB={params.job:q}; "
        "sso preferences --settings {params.settings:q} --part {params.part} --out {output:q} > {log:q} 2>&1"
