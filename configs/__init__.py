"""One complete YAML file per deployment, named for its hardware."""
