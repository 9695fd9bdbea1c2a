"""What tests share: counts, requirements, processes, private mounts."""
