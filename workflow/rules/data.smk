# The experiment as it was resolved, and the micro-world's files (or the real queries).


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
