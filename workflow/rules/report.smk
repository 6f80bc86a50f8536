# Tables and figures, then MLflow. The report's own source is an input: editing it reruns the report alone.


report: "../report/workflow.rst"


rule report:
    input:
        unpack(grid.inputs("report")),
    output:
        report(
            directory(grid.pattern("report")),
            patterns=["{name}.html", "figures/{name}.svg", "tables/{name}.csv"],
            caption="../report/report.rst",
            category="Report",
            labels={"what": "{name}"},
        ),
    log:
        grid.log("report"),
    benchmark:
        grid.benchmark("report")
    conda:
        grid.environment
    params:
        results=grid.param("report", "results"),
    shell:
        "sso report --config {input.config:q} --results {params.results:q} --out {output:q} > {log:q} 2>&1"


rule mlflow:
    input:
        unpack(grid.inputs("mlflow")),
    output:
        touch(grid.pattern("mlflow")),
    log:
        grid.log("mlflow"),
    benchmark:
        grid.benchmark("mlflow")
    conda:
        grid.environment
    params:
        results=grid.param("mlflow", "results"),
        options=grid.param("mlflow", "options"),
    shell:
        "sso mlflow-sync --results {params.results:q} {params.options:q} > {log:q} 2>&1"
