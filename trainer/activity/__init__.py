"""Generated protobuf code of package activity; see protos/ and ``make protos``."""
