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
        grid.environment
    params:
        settings=grid.param("principles", "settings"),
        options=grid.param("principles", "options"),
        seed=grid.param("principles", "seed"),
    shell:
        "sso principles --queries {input.queries:q} --version {wildcards.version} --settings {params.settings:q}"
        " {params.options:q} --seed {params.seed} --out {output:q} > {log:q} 2>&1"
