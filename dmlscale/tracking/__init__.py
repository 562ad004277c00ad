import os

# mlflow reads the first of these when it is imported, so they must be set before that. Its own defaults would
# let one call to a server that is down wait for 246 s; what cannot be sent is kept and sent later anyway.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with a server it prints links at each end of a run
}.items():
    os.environ.setdefault(_name, _value)
