def manifest(config):
    raise NotImplementedError
