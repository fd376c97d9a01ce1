"""The programs that compute: one module an engine, imported only when a model must run."""
