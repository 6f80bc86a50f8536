# The experiment as it was resolved, the micro-world's files (or real queries and benchmarks), annotated pairs.


rule config:
    output:
        grid.pattern("config"),
    log:
        grid.log("config"),
    benchmark:
        grid.benchmark("config")
    conda:
        grid.environment
    params:
        experiment=grid.param("config", "experiment"),
    shell:
        "printf '%s\\n' {params.experiment:q} > {output:q} 2> {log:q}"


rule data:
    input:
        unpack(grid.inputs("data")),
    output:
        **grid.data_files,
    log:
        grid.log("data"),
    benchmark:
        grid.benchmark("data")
    priority: grid.priority("data")
    conda:
        grid.environment
    params:
        settings=grid.param("data", "settings"),
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "sso data --settings {params.settings:q} --out {params.folder:q} > {log:q} 2>&1"


rule preferences:
    input:
        unpack(grid.inputs("preferences")),
    output:
        grid.pattern("preferences"),
    log:
        grid.log("preferences"),
    benchmark:
        grid.benchmark("preferences")
    priority: grid.priority("preferences")
    conda:
        grid.environment
    params:
        settings=grid.param("preferences", "settings"),
        part=grid.param("preferences", "part"),
    shell:
        "sso preferences --settings {params.settings:q} --part {params.part} --out {output:q} > {log:q} 2>&1"
