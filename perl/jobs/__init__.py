"""The stages of a pipeline, one file each: ``run(config, workdir) -> metrics``."""
